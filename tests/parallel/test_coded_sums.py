"""Sums over real ranks with every codec and with PowerSGD: equal on all, with nothing lost but what is kept."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.core import recipe
from shoal.parallel.codecs import CODECS
from shoal.parallel.codecs.codec import Codec
from shoal.parallel.codecs.powersgd import PowerSGD
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.feedback import Place
from shoal.parallel.mesh import Axis, make_mesh, own_channel
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks

LENGTH = 2 * 4096 * 3
SHAPES = {"bias": (40,), "wide": (24, 48), "scale": (), "tall": (64, 3, 4), "twin": (24, 48), "small": (3, 5)}


def places_of(shapes: dict[str, tuple[int, ...]]) -> list[Place]:
    """One after the other, five numbers apart that belong to none."""
    lengths = [math.prod(shape) + 5 for shape in shapes.values()]
    offsets = itertools.accumulate([3, *lengths[:-1]])
    return [Place(name, shape, offset) for (name, shape), offset in zip(shapes.items(), offsets, strict=True)]


PLACES = places_of(SHAPES)
FLAT = PLACES[-1].offset + 15 + 4


def make(kind: str) -> Codec:
    return CODECS[kind](recipe.Codec(kind=kind))


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def row_of(rank: int, length: int, turn: int = 0) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(100 * turn + rank))


def low_rank(rank: int) -> Tensor:
    """Matrices that are all of rank 2."""
    flat = row_of(rank, FLAT)
    for place in PLACES:
        if len(place.shape) > 1:
            rows, columns = place.shape[0], math.prod(place.shape[1:])
            thin = row_of(9, rows * 2).view(rows, 2) @ row_of(rank, 2 * columns).view(2, columns)
            flat[place.offset : place.offset + rows * columns] = thin.flatten()
    return flat


def do_sum(way: CodedSum | PowerSGD, values: Tensor, dropped: Tensor, feedback: bool = True) -> dict[str, Any]:
    """A sum in the background, and what it sent."""
    values, dropped, sent = values.clone(), dropped.clone(), way.wire.bytes_sent
    way.wire.finish(way.start(values, dropped if feedback else None))
    return {"sum": values, "dropped": dropped, "sent": way.wire.bytes_sent - sent, "foretold": way.wire_bytes(len(values))}


def all_sums(world: World) -> dict[str, Any]:
    """Whatever the tests below look at, from one start of the ranks."""
    wire, axis = Wire(world), own_channel(make_mesh(world, (world.size, 1, 1)).data, 60)
    got: dict[str, Any] = {}
    for kind in CODECS:
        for feedback in (True, False):
            way = CodedSum(wire, axis, make(kind), decay=0.5)
            assert LENGTH % way.multiple == 0
            got[f"{kind}/{feedback}"] = do_sum(way, row_of(world.rank, LENGTH), row_of(world.rank, LENGTH, 1), feedback)

    def powersgd(rank: int, **keys: Any) -> PowerSGD:
        return PowerSGD(wire, axis, PLACES, rank, **keys)

    nothing, mine = torch.zeros(FLAT), row_of(world.rank, FLAT)
    for feedback in (True, False):
        got[f"powersgd/{feedback}"] = do_sum(powersgd(2, decay=0.5), mine, row_of(world.rank, FLAT, 1), feedback)
    got["full"] = do_sum(powersgd(24), mine, nothing)
    got["low"] = do_sum(powersgd(2), low_rank(world.rank), nothing)
    warm = powersgd(2)
    got["warm"] = [do_sum(warm, mine, nothing, feedback=False) for _ in range(30)]
    again = powersgd(2, seed=5)
    again.load_state_dict({name: q.clone() for name, q in warm.state_dict().items()})
    got["resumed"] = [do_sum(way, low_rank(world.rank), nothing, False)["sum"] for way in (warm, again)]
    bad, before = mine.clone(), row_of(world.rank, FLAT, 1)
    if world.rank == 0:
        bad[PLACES[1].offset + 7] = math.nan
    spoilt = powersgd(2)
    warmth = {name: q.clone() for name, q in spoilt.state_dict().items()}
    got["bad"] = do_sum(spoilt, bad, before) | {"before": before, "warm before": warmth, "warm": spoilt.state_dict()}
    return got


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(2, all_sums)


WAYS = [*CODECS, "powersgd"]


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("feedback", [True, False])
def test_all_ranks_have_the_same_sum_and_sent_what_was_foretold(ranks: Any, kind: str, feedback: bool) -> None:
    first, second = (result[f"{kind}/{feedback}"] for result in ranks)
    assert same_bits(first["sum"], second["sum"])
    assert first["sent"] == first["foretold"] == second["sent"]


@pytest.mark.parametrize("kind", WAYS)
def test_a_sum_and_what_all_ranks_dropped_of_it_are_the_true_sum(ranks: Any, kind: str) -> None:
    results = [result[f"{kind}/True"] for result in ranks]
    length = len(results[0]["sum"])
    wanted = sum(row_of(rank, length).double() + 0.5 * row_of(rank, length, 1).double() for rank in range(2))
    got = results[0]["sum"].double() + results[0]["dropped"] + results[1]["dropped"]
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 if kind == "powersgd" else 2e-6)
    assert not torch.allclose(results[0]["sum"].double(), wanted, rtol=0, atol=1e-4)  # something was dropped


@pytest.mark.parametrize("kind", WAYS)
def test_without_feedback_nothing_is_kept(ranks: Any, kind: str) -> None:
    for rank, result in enumerate(ranks):
        kept = result[f"{kind}/False"]["dropped"]
        assert same_bits(kept, row_of(rank, len(kept), 1))


def test_powersgd_sends_thin_matrices_and_the_rest_plain(ranks: Any) -> None:
    matrices = [(24, 48), (64, 12), (24, 48)]
    thin = sum(2 * (rows + columns) for rows, columns in matrices)
    plain = FLAT - sum(rows * columns for rows, columns in matrices)
    assert ranks[0]["powersgd/True"]["sent"] == 4 * (thin + plain)
    assert ranks[0]["full"]["sent"] == 4 * FLAT


def test_powersgd_at_full_rank_is_the_plain_sum(ranks: Any) -> None:
    torch.testing.assert_close(ranks[0]["full"]["sum"], row_of(0, FLAT) + row_of(1, FLAT))


def test_powersgd_sums_matrices_of_its_rank_exactly(ranks: Any) -> None:
    torch.testing.assert_close(ranks[0]["low"]["sum"], low_rank(0) + low_rank(1), rtol=1e-4, atol=1e-4)
    assert not ranks[0]["low"]["dropped"][: PLACES[1].offset].any()


def test_warm_starts_bring_powersgd_to_the_best_approximation(ranks: Any) -> None:
    true = row_of(0, FLAT) + row_of(1, FLAT)
    for place in (PLACES[1], PLACES[3], PLACES[4]):
        where, shape = slice(place.offset, place.offset + math.prod(place.shape)), (place.shape[0], -1)
        best = torch.linalg.svdvals(true[where].view(shape))[2:].square().sum().sqrt()
        first, last = ((ranks[0]["warm"][turn]["sum"] - true)[where].norm() for turn in (0, -1))
        assert last <= 1.01 * best < first


def test_powersgd_goes_on_bitwise_from_its_state(ranks: Any) -> None:
    went_on, resumed = ranks[1]["resumed"]
    assert same_bits(went_on, resumed)


def test_what_is_not_finite_on_one_rank_all_see_and_powersgd_forgets_nothing(ranks: Any) -> None:
    place = PLACES[1]
    where = slice(place.offset, place.offset + math.prod(place.shape))
    for result in ranks:
        bad = result["bad"]
        assert not bad["sum"][where].isfinite().any() and bad["sum"][where.stop :].isfinite().all()
        assert same_bits(bad["dropped"][where], bad["before"][where])
        assert same_bits(bad["warm"]["wide"], bad["warm before"]["wide"])
        assert not torch.equal(bad["warm"]["twin"], bad["warm before"]["twin"])
        assert bad["dropped"].isfinite().all()


def test_alone_there_is_nothing_to_sum() -> None:
    wire = Wire(alone())
    for way in (CodedSum(wire, Axis(), make("int4")), PowerSGD(wire, Axis(), PLACES, 2)):
        result = do_sum(way, row_of(0, FLAT), torch.zeros(FLAT))
        assert same_bits(result["sum"], row_of(0, FLAT)) and result["sent"] == result["foretold"] == 0
