"""Matrices of which ranks hold parts are put together whole, each by one rank, and given back as they were divided."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from shoal.parallel.matrices import Matrices
from shoal.parallel.mesh import make_mesh
from shoal.parallel.shards import Box, Shard, Shards, cut, share_out
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import run_ranks

SHAPES = {"square": (6, 6), "wide": (4, 9), "tall": (11, 3), "another": (6, 6), "row": (1, 5)}


def wholes() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def by_rows(shape: tuple[int, ...], rank: int, size: int) -> tuple[Box, ...]:
    """Some ranks get none of few rows."""
    each = -(-shape[0] // size)
    start, end = (min(edge * each, shape[0]) for edge in (rank, rank + 1))
    return (Box.along(shape, 0, start, end),)


def by_pieces(shape: tuple[int, ...], rank: int, size: int) -> tuple[Box, ...]:
    """Elements in a row, cut where it happens to be: rank r has the r-th of unequal pieces."""
    count = shape[0] * shape[1]
    edges = [0, *(count * (rank + 1) ** 2 // size**2 for rank in range(size))]
    return (Box.piece(shape, edges[rank], edges[rank + 1]),)


def by_columns_and_pieces(shape: tuple[int, ...], rank: int, size: int) -> tuple[Box, ...]:
    """Half of the columns, and half of these in a row."""
    half = shape[1] // 2
    columns = Box.along(shape, 1, *((0, half) if rank % 2 == 0 else (half, shape[1])))
    count = columns.sizes[0] * columns.sizes[1]
    return (columns, Box.piece(columns.sizes, *((0, count // 2) if rank // 2 == 0 else (count // 2, count))))


DIVISIONS = {"rows": by_rows, "pieces": by_pieces, "columns and pieces": by_columns_and_pieces}


def all_there_and_back(world: World) -> dict[str, tuple[list[str], int, int]]:
    """By division."""
    return {division: there_and_back(world, division) for division in DIVISIONS}


def there_and_back(world: World, division: str) -> tuple[list[str], int, int]:
    """(which were this rank's, bytes sent there, and back); what is put together and given back is checked here."""
    expected = wholes()
    shards: Shards = {}
    for name, value in expected.items():
        boxes = DIVISIONS[division](tuple(value.shape), world.rank, world.size)
        shards[name] = Shard(nn.Parameter(cut(value, boxes)), value.shape, boxes)
    wire = Wire(world)
    matrices = Matrices(wire, make_mesh(world, (1, world.size, 1)).copy, shards)
    wire.sent.clear()
    found = matrices.collect({name: shard.value.data for name, shard in shards.items()})
    there = wire.bytes_sent
    assert list(found) == matrices.mine
    for name, whole in found.items():
        assert torch.equal(whole, expected[name])
    parts = matrices.give_back({name: 2 * whole for name, whole in found.items()}, torch.empty(0))
    assert parts.keys() == shards.keys()
    for name, part in parts.items():
        assert torch.equal(part, 2 * shards[name].value.data)
    return matrices.mine, there, wire.bytes_sent - there


def test_parts_become_wholes_and_parts_again() -> None:
    by_rank = run_ranks(4, all_there_and_back)
    for division in DIVISIONS:
        found = [its[division] for its in by_rank]
        check_exchanges(division, found)


def check_exchanges(division: str, found: list[tuple[list[str], int, int]]) -> None:
    """What each rank had as its own, and sent."""
    assert sorted(name for mine, _, _ in found for name in mine) == sorted(SHAPES)
    # what goes to owners from others comes back from them
    assert sum(there for _, there, _ in found) == sum(back for _, _, back in found)
    held = {name: [torch.Size(DIVISIONS[division](shape, rank, 4)[-1].sizes).numel() for rank in range(4)]
            for name, shape in SHAPES.items()}  # fmt: skip
    for rank, (mine, there, back) in enumerate(found):
        assert there == 4 * sum(sizes[rank] for name, sizes in held.items() if name not in mine)
        assert back == 4 * sum(sum(held[name]) - held[name][rank] for name in mine)


def copies(world: World) -> tuple[int, list[str]]:
    """Two copies of the model, over two ranks each: what does a copy's own matrices' owner get?"""
    value = torch.full((4, 2), float(world.rank // 2))
    shard = Shard(nn.Parameter(value[:2] if world.rank % 2 == 0 else value[2:]), value.shape)
    shard = replace(shard, boxes=by_rows((4, 2), world.rank % 2, 2))
    matrices = Matrices(Wire(world), make_mesh(world, (2, 2, 1)).copy, {"it": shard})
    found = matrices.collect({"it": shard.value.data})
    return world.rank // 2, [str(whole.unique().tolist()) for whole in found.values()]


def test_copies_of_the_model_put_their_own_together() -> None:
    assert run_ranks(4, copies) == [(0, ["[0.0]"]), (0, []), (1, ["[1.0]"]), (1, [])]


def test_work_is_shared_out_evenly_and_alike_whatever_the_order() -> None:
    work = {f"{number}.{kind}": size for number in range(6) for kind, size in (("qkv", 96), ("out", 32), ("up", 128))}
    owned = share_out(work, 4)
    assert owned == share_out(dict(reversed(work.items())), 4)
    assert sorted(name for names in owned for name in names) == sorted(work)
    assert max(sum(work[name] for name in names) for names in owned) <= 1.2 * sum(work.values()) / 4
