"""Summed gradients, however the model is divided: over any number of ranks the same as one rank with all the data."""

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.fully_sharded import FullySharded
from shoal.parallel.mesh import Mesh, make_mesh
from shoal.parallel.sharded_optimizer import ShardedOptimizer
from shoal.parallel.shards import put, whole_shards
from shoal.parallel.shared_memory import SharedAllReduce
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks

DIVIDED = ("zero1", "zero2", "zero3")
KINDS = ("replicate", "shared", *DIVIDED)


def small_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2))


def make(kind: str, world: World, model: nn.Module, bucket_bytes: int = 1 << 20, shard: int = 0) -> Sync:
    wire = Wire(world)
    shard = shard or world.size if kind in DIVIDED else 1
    mesh = make_mesh(world, (world.size // shard, shard, 1))
    sync: Sync
    if kind in ("replicate", "shared"):
        sync = (SharedAllReduce if kind == "shared" else AllReduce)(wire, mesh, bucket_bytes)
    elif kind == "zero1":
        sync = ShardedOptimizer(wire, mesh, bucket_bytes)
    else:
        units = [layer for layer in model.children() if isinstance(layer, nn.Linear)][:-1]
        sync = FullySharded(wire, mesh, units, keep=kind == "zero2")
    sync.attach(model, whole_shards(model))
    return sync


def step_of(
    world: World, kind: str, rows: Tensor, bucket_bytes: int = 1 << 20, pieces: int = 1, shard: int = 0
) -> dict[str, Any]:
    """One step of gradient descent; what this rank has of the gradients, and of the weights after it."""
    model = small_model(seed=0)
    sync = make(kind, world, model, bucket_bytes, shard)
    chunks = rows[world.rank :: world.size].chunk(pieces)
    for index, chunk in enumerate(chunks):
        sync.begin_backward(last=index == len(chunks) - 1)
        model(chunk).square().sum().backward()
    sync.before_step()
    norm, sent = sync.grad_norm(), sync.wire.bytes_sent
    sync.scale_grads(0.5)
    halved = sync.grad_norm()
    parts = []
    for name, shard_of in sync.shards.items():
        assert shard_of.value.grad is not None
        parts.append((name, shard_of.shape, shard_of.boxes, 2 * shard_of.value.grad))
        with torch.no_grad():
            shard_of.value.sub_(shard_of.value.grad)
    sync.after_step()
    with torch.no_grad():
        after = model(rows)  # whatever was divided is together again
    return {"parts": parts, "norm": norm, "halved": halved, "bytes": sent, "after": after}


def whole(results: list[dict[str, Any]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for result in results:
        for name, shape, boxes, values in result["parts"]:
            put(tensors.setdefault(name, torch.full(shape, torch.nan)), boxes, values)
    return tensors


def check_same_as_alone(size: int, kind: str, **how: int) -> None:
    rows = torch.randn(11, 5, generator=torch.Generator().manual_seed(3))
    reference = step_of(alone(), "replicate", rows)
    results = run_ranks(size, step_of, kind, rows, how["bucket_bytes"], how.get("pieces", 1), how.get("shard", 0))
    torch.testing.assert_close(whole(results), whole([reference]), rtol=1e-5, atol=1e-6)
    for got in results:
        torch.testing.assert_close(got["norm"], reference["norm"], rtol=1e-5, atol=0)
        torch.testing.assert_close(got["halved"], 0.5 * got["norm"])
        torch.testing.assert_close(got["after"], reference["after"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_with_uneven_rows_do_what_one_rank_does(kind: str) -> None:
    check_same_as_alone(2, kind, bucket_bytes=1 << 20)


@pytest.mark.parametrize("kind", KINDS)
def test_four_ranks_with_many_buckets_and_accumulation_do_what_one_rank_does(kind: str) -> None:
    check_same_as_alone(4, kind, bucket_bytes=40, pieces=2)


@pytest.mark.parametrize("kind", DIVIDED)
def test_two_copies_of_a_model_divided_in_two_do_what_one_rank_does(kind: str) -> None:
    check_same_as_alone(4, kind, bucket_bytes=40, pieces=2, shard=2)


def unused_parameter(world: World, kind: str) -> list[Tensor]:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    sync = make(kind, world, model, 8)
    sync.begin_backward(last=True)
    model[world.rank](torch.ones(1, 2)).sum().backward()  # each rank uses another half
    sync.before_step()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", ["replicate", "shared"])
def test_parameters_that_took_no_part_on_a_rank_still_meet(kind: str) -> None:
    first, second = run_ranks(2, unused_parameter, kind)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all(gradient.any() for gradient in first)


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_on_the_wire_are_those_of_the_ring(size: int) -> None:
    rows = torch.ones(4, 5)
    parameters = sum(parameter.numel() for parameter in small_model(0).parameters())
    for got in run_ranks(size, step_of, "replicate", rows):
        assert got["bytes"] == 2 * (parameters * 4) * (size - 1) // size
    assert step_of(alone(), "replicate", rows)["bytes"] == 0


def shared_sum(world: World, length: int, broken: int, lost: bool = False) -> dict[str, Any]:
    """The sum of numbers that differ by rank, over memory that rank `broken` can't have, or (`lost`) tells wrongly of."""
    if world.rank == broken and lost:
        process = os.getppid()  # as in a container that counts processes by itself
        os.getpid = lambda: process
    elif world.rank == broken:
        del os.memfd_create  # as where the system isn't Linux
    model = nn.Linear(length, 1, bias=False)
    sync = SharedAllReduce(Wire(world), make_mesh(world, (world.size, 1, 1)))
    sync.attach(model, whole_shards(model))
    assert (sync.buffers is None) == (broken >= 0)
    sums = []
    for step in range(3):
        sync.begin_backward(last=True)
        numbers = torch.randn(length, generator=torch.Generator().manual_seed(10 * step + world.rank))
        model(numbers).backward()
        sync.before_step()
        sums.append(sync.gradients.flat[:length].clone())
        sync.after_step()
    return {"sums": sums, "sent": sync.wire.sent["all-reduce"]}


@pytest.mark.parametrize(("size", "length"), [(2, 200_001), (4, 3), (3, 100_000)])
def test_sums_in_shared_memory_are_those_in_the_order_of_ranks_on_every_rank(size: int, length: int) -> None:
    results = run_ranks(size, shared_sum, length, -1)
    for step in range(3):
        numbers = [torch.randn(length, generator=torch.Generator().manual_seed(10 * step + rank)) for rank in range(size)]
        for got in results:
            assert got["sums"][step].equal(sum(numbers[1:], numbers[0]))
    assert all(got["sent"] < 200 for got in results)  # words to meet by, whatever the length


@pytest.mark.parametrize("lost", [False, True])
def test_where_memory_cant_be_shared_sums_travel(lost: bool) -> None:
    shared, sent = (run_ranks(2, shared_sum, 500, broken, lost) for broken in (-1, 1))
    for one, other in zip(shared, sent, strict=True):
        torch.testing.assert_close(one["sums"], other["sums"], rtol=0, atol=0)
    assert all(got["sent"] == 3 * 500 * 4 for got in sent)


@settings(max_examples=30, deadline=None)
@given(bucket_bytes=st.integers(1, 400), pieces=st.integers(1, 5))
def test_alone_gradients_are_plain_autograds_whatever_the_buckets(bucket_bytes: int, pieces: int) -> None:
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    model = small_model(0)
    model(rows).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    got = step_of(alone(), "replicate", rows, bucket_bytes, pieces)
    torch.testing.assert_close(whole([got]), expected, rtol=1e-5, atol=1e-6)


def test_mixed_types_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="one type"):
        AllReduce(Wire(alone()), Mesh()).attach(model, whole_shards(model))
