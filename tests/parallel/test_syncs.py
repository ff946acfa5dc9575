"""Summed gradients, however the model is divided: over any number of ranks the same as one rank with all the data."""

import os
import time
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
from shoal.parallel.shared_memory import SharedMemory
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
        sync = (SharedMemory if kind == "shared" else AllReduce)(wire, mesh, bucket_bytes)
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


def unused_parameter(world: World, kind: str) -> dict[str, Tensor]:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    sync = make(kind, world, model, 8)
    sync.begin_backward(last=True)
    model[world.rank](torch.ones(1, 2)).sum().backward()  # each rank uses another half
    sync.before_step()
    return {name: shard.value.grad.clone() for name, shard in sync.shards.items() if shard.value.grad is not None}


@pytest.mark.parametrize("kind", ["replicate", "shared"])
def test_parameters_that_took_no_part_on_a_rank_still_meet(kind: str) -> None:
    first, second = run_ranks(2, unused_parameter, kind)
    assert len(first | second) == 4 and all(gradient.any() for gradient in (first | second).values())
    for name in first.keys() & second.keys():
        assert first[name].equal(second[name])


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_on_the_wire_are_those_of_the_ring(size: int) -> None:
    rows = torch.ones(4, 5)
    parameters = sum(parameter.numel() for parameter in small_model(0).parameters())
    for got in run_ranks(size, step_of, "replicate", rows):
        assert got["bytes"] == 2 * (parameters * 4) * (size - 1) // size
    assert step_of(alone(), "replicate", rows)["bytes"] == 0


def numbers(rank: int, step: int, length: int) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(10 * step + rank))


def shared_steps(world: World, length: int, broken: int, lost: bool = False) -> dict[str, Any]:
    """Steps against the sum of numbers that differ by rank, over memory that rank `broken` can't have, or (`lost`) tells
    wrongly of.
    """
    if world.rank == broken and lost:
        process = os.getppid()  # as in a container that counts processes by itself
        os.getpid = lambda: process
    elif world.rank == broken:
        del os.memfd_create  # as where the system isn't Linux
    model = nn.ParameterDict({f"of {size}": nn.Parameter(torch.zeros(size)) for size in range(length, length + 5)})
    sync = SharedMemory(Wire(world), make_mesh(world, (world.size, 1, 1)))
    sync.attach(model, whole_shards(model))
    assert (sync.memory is None) == (broken >= 0)
    steps = []
    for step in range(3):
        sync.begin_backward(last=True)
        losses = [(weight * numbers(world.rank, step, len(weight))).sum() for weight in model.values()]
        torch.stack(losses).sum().backward()
        sync.before_step()
        sums = {name: shard.value.grad.clone() for name, shard in sync.shards.items() if shard.value.grad is not None}
        with torch.no_grad():
            for name, shard in sync.shards.items():
                shard.value.sub_(sums[name])
        sync.after_step()
        steps.append((sums, {name: weight.detach().clone() for name, weight in model.items()}))
    return {"steps": steps, "sent": sync.wire.sent["all-reduce"]}


@pytest.mark.parametrize(("size", "length"), [(2, 100_001), (4, 3), (3, 70_000)])
def test_in_shared_memory_each_rank_steps_on_its_own_by_sums_in_the_order_of_ranks(size: int, length: int) -> None:
    results = run_ranks(size, shared_steps, length, -1)
    weights = {f"of {width}": torch.zeros(width) for width in range(length, length + 5)}
    for step in range(3):
        names = [name for got in results for name in got["steps"][step][0]]
        assert sorted(names) == sorted(weights)  # each is one rank's
        for name, weight in weights.items():
            first, *others = (numbers(rank, step, len(weight)) for rank in range(size))
            total = sum(others, first)
            weight -= total
            for sums, held in (got["steps"][step] for got in results):
                assert name not in sums or sums[name].equal(total)
                assert held[name].equal(weight)
    assert all(got["sent"] < 500 for got in results)  # words to meet by, whatever the length


@pytest.mark.parametrize("lost", [False, True])
def test_where_memory_cant_be_shared_sums_travel(lost: bool) -> None:
    shared, sent = (run_ranks(2, shared_steps, 500, broken, lost) for broken in (-1, 1))
    for one, other in zip(shared, sent, strict=True):
        for (some, weights), (sums, same) in zip(one["steps"], other["steps"], strict=True):
            assert len(sums) == 5 and all(sums[name].equal(value) for name, value in some.items())
            assert all(same[name].equal(value) for name, value in weights.items())
    assert all(got["sent"] == 3 * 4 * sum(range(500, 505)) for got in sent)


def two_buckets(world: World) -> tuple[SharedMemory, nn.ParameterDict]:
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(2)) for name in ("first", "last")})
    sync = SharedMemory(Wire(world), make_mesh(world, (world.size, 1, 1)), bucket_bytes=1)
    sync.attach(model, whole_shards(model))
    return sync, model


def late(world: World) -> bool:
    """Rank 1 has only one of its gradients until it sees the sum of these, which rank 0 has made."""
    sync, model = two_buckets(world)
    assert sync.memory is not None and sync.gradients.parameters[0] is model["last"]
    sync.begin_backward(last=True)
    model["last"].sum().backward()
    ends = time.monotonic() + 60
    while world.rank == 1 and not any(buffer[:2].tolist() == [2, 2] for buffer in sync.memory.buffers):
        assert time.monotonic() < ends
    model["first"].sum().backward()
    sync.before_step()
    return all(shard.value.grad is not None and shard.value.grad.tolist() == [2, 2] for shard in sync.shards.values())


def test_who_waits_sums_what_is_there() -> None:
    assert all(run_ranks(2, late))


def changed(world: World) -> tuple[set[float], set[float]]:
    """The weights that a rank computes with while, and after, another is about to change them."""
    sync, model = two_buckets(world)
    before = {weight for _ in range(world.rank * 20_000) for weight in model["first"].tolist() + model["last"].tolist()}
    with torch.no_grad(), sync.changing_weights():
        for shard in sync.shards.values():
            shard.value.fill_(5)
    return before, {weight for value in model.values() for weight in value.tolist()}


def test_weights_change_when_nobody_computes_with_them() -> None:
    assert run_ranks(2, changed) == [(set(), {5}), ({1}, {5})]


def few_parameters(world: World) -> Tensor:
    model = nn.ParameterDict({"it": nn.Parameter(torch.zeros(2))})
    sync = SharedMemory(Wire(world), make_mesh(world, (world.size, 1, 1)))
    sync.attach(model, whole_shards(model))
    sync.begin_backward(last=True)
    model["it"][world.rank].mul(world.rank + 1).backward()
    sync.before_step()
    gradient = sync.shards["it"].value.grad
    assert gradient is not None
    return gradient.clone()


def test_where_there_are_fewer_parameters_than_ranks_each_has_all() -> None:
    assert [got.tolist() for got in run_ranks(2, few_parameters)] == [[1, 2], [1, 2]]


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
