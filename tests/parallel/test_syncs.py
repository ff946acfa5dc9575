"""Summed gradients, however the model is divided: over any number of ranks the same as one rank with all the data."""

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
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks

KINDS = ("replicate", "zero1", "zero2", "zero3")


def small_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2))


def make(kind: str, world: World, model: nn.Module, bucket_bytes: int = 1 << 20, shard: int = 0) -> Sync:
    wire = Wire(world)
    shard = 1 if kind == "replicate" else shard or world.size
    mesh = make_mesh(world, (world.size // shard, shard, 1))
    sync: Sync
    if kind == "replicate":
        sync = AllReduce(wire, mesh, bucket_bytes)
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


@pytest.mark.parametrize("kind", KINDS[1:])
def test_two_copies_of_a_model_divided_in_two_do_what_one_rank_does(kind: str) -> None:
    check_same_as_alone(4, kind, bucket_bytes=40, pieces=2, shard=2)


def unused_parameter(world: World) -> list[Tensor]:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    sync = make("replicate", world, model, 8)
    sync.begin_backward(last=True)
    model[world.rank](torch.ones(1, 2)).sum().backward()  # each rank uses another half
    sync.before_step()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_parameters_that_took_no_part_on_a_rank_still_meet() -> None:
    first, second = run_ranks(2, unused_parameter)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all(gradient.any() for gradient in first)


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_on_the_wire_are_those_of_the_ring(size: int) -> None:
    rows = torch.ones(4, 5)
    parameters = sum(parameter.numel() for parameter in small_model(0).parameters())
    for got in run_ranks(size, step_of, "replicate", rows):
        assert got["bytes"] == 2 * (parameters * 4) * (size - 1) // size
    assert step_of(alone(), "replicate", rows)["bytes"] == 0


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
