"""Sums in one fixed tree over virtual shards: the same bits on any number of ranks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.core.errors import InputError
from shoal.parallel.exact import ExactSum
from shoal.parallel.mesh import Mesh
from shoal.parallel.shards import whole_shards
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks

SHARDS = 8


def small_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2))


def shard_rows() -> list[Tensor]:
    """Rows of very different sizes, so that sums in another order have other bits."""
    random = torch.Generator().manual_seed(3)
    rows = torch.randn(SHARDS, 3, 5, generator=random) * torch.logspace(-3, 2, SHARDS)[:, None, None]
    return list(rows)


def shard_totals() -> Tensor:
    """What a loop would sum beside the gradients, [shards, 6], as doubles of very different sizes."""
    values = torch.randn(SHARDS, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return values * torch.logspace(-3, 2, SHARDS)[:, None]


def pairwise(values: list[Tensor]) -> Tensor:
    """The tree, written out: neighbours first, then neighbours of these sums."""
    while len(values) > 1:
        values = [left + right for left, right in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def sums_of(world: World, rows: list[Tensor], steps: int = 2) -> dict[str, Any]:
    model = small_model(0)
    sync = ExactSum(Wire(world), Mesh(), len(rows))
    sync.attach(model, whole_shards(model))
    sent = []
    share = len(rows) // world.size
    for _ in range(steps):  # a step must leave nothing behind for the next
        before = sync.wire.bytes_sent
        for index, row in enumerate(rows[world.rank * share : (world.rank + 1) * share]):
            sync.begin_backward(last=index == share - 1)
            model(row).square().sum().backward()
        sync.before_step()
        sent.append(sync.wire.bytes_sent - before)
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        totals = shard_totals()[world.rank * share : (world.rank + 1) * share]
        result = {"gradients": gradients, "norm": sync.grad_norm(), "totals": sync.sum_totals(totals)}
        sync.after_step()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
    return result | {"bytes": sent}


def reference(rows: list[Tensor]) -> list[Tensor]:
    model = small_model(0)
    gradients = [torch.autograd.grad(model(row).square().sum(), list(model.parameters())) for row in rows]
    return [pairwise(list(parts)) for parts in zip(*gradients, strict=True)]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(own, other) for own, other in zip(left, right, strict=True))


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_the_sum_is_the_pairwise_tree_of_the_shards(shards: int) -> None:
    rows = shard_rows()[:shards]
    got = sums_of(alone(), rows)
    assert got["bytes"] == [0, 0]
    assert same(got["gradients"], reference(rows))
    assert torch.equal(got["totals"], pairwise(list(shard_totals()[:shards])))


def test_a_sum_in_another_order_would_show_in_these_rows() -> None:
    rows, totals = shard_rows(), list(shard_totals())
    assert not same(reference(rows), reference(rows[1:] + rows[:1]))
    assert not torch.equal(pairwise(totals), pairwise(totals[1:] + totals[:1]))


def test_two_and_four_ranks_have_the_bits_of_one_and_send_a_buffer_a_level() -> None:
    rows = shard_rows()
    one = sums_of(alone(), rows)
    buffer = 4 * sum(parameter.numel() for parameter in small_model(0).parameters())
    for size, levels in ((2, 1), (4, 2)):
        for _rank, got in enumerate(run_ranks(size, sums_of, rows)):
            assert got["bytes"] == [buffer * levels] * 2
            assert same([got["totals"], got["norm"], *got["gradients"]], [one["totals"], one["norm"], *one["gradients"]])


def test_a_checkpoint_that_would_go_on_with_other_bits_is_refused() -> None:
    def sync(shards: int, threads: int = 1) -> ExactSum:
        sync = ExactSum(Wire(alone()), Mesh(), shards, threads)
        sync.attach(model := small_model(0), whole_shards(model))
        return sync

    saved = sync(8).state_dict()
    sync(8).load_state_dict(saved)
    with pytest.raises(InputError, match=r"virtual_shards 8, threads 1; .*virtual_shards 4, threads 1"):
        sync(4).load_state_dict(saved)
    with pytest.raises(InputError, match=r"threads 2"):
        sync(8, threads=2).load_state_dict(saved)
    with pytest.raises(InputError, match=r"without parallel\.exact"):
        sync(8).load_state_dict({})
    torch.set_num_threads(1)


def test_a_gpu_is_refused() -> None:
    world = World(device=torch.device("cuda", 0))
    with pytest.raises(InputError, match=r"parallel\.exact.*train\.device cpu"):
        ExactSum(Wire(world), Mesh(), 8)
