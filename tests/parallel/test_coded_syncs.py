"""Sums of encoded gradients, however the model is divided: nothing is lost, and every byte is foretold."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.codecs.plain import Plain
from shoal.parallel.coded_all_reduce import CodedAllReduce
from shoal.parallel.coded_scatter import CodedScatter
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.fully_sharded import FullySharded
from shoal.parallel.mesh import Axis, make_mesh
from shoal.parallel.sharded_optimizer import ShardedOptimizer
from shoal.parallel.shards import put, whole_shards
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.parallel.test_syncs import small_model
from tests.ranks import alone, run_ranks

STEPS = 3


class Coarse:
    """Four values share a scale and have three levels each; zeros become small values."""

    block = 4

    def nbytes(self, length: int) -> int:
        return 2 * length

    def encode(self, values: Tensor, payload: Tensor) -> None:
        blocks = values.view(-1, 4)
        scales = blocks.abs().mean(1, keepdim=True)
        levels = payload.view(-1, 8)
        levels[:, :4] = ((blocks >= 0).int() * 2 - 1).to(torch.int8).view(torch.uint8)
        levels[:, 4:] = scales.contiguous().view(torch.uint8)

    def decode(self, payload: Tensor, values: Tensor, add: bool = False) -> None:
        levels = payload.view(-1, 8)
        scales = levels[:, 4:].contiguous().view(torch.float32)
        decoded = (levels[:, :4].contiguous().view(torch.int8) * scales).flatten()
        values.copy_(values + decoded if add else decoded)


@dataclass(frozen=True)
class Case:
    """A division and a codec."""

    division: str
    codec: Any
    bucket_bytes: int = 60


CODECS = (Plain(), Coarse())
DIVISIONS = ("replicate", "zero1", "zero2", "zero3", "two copies of zero1", "two copies of zero3")
CASES = {(division, type(codec).__name__): Case(division, codec) for division in DIVISIONS for codec in (None, *CODECS)}


def make(case: Case, world: World, model: nn.Module) -> Sync:
    wire = Wire(world)
    size, kind = world.size, case.division.split()[-1]
    shard = 1 if kind == "replicate" else size // 2 if "copies" in case.division else size
    mesh = make_mesh(world, (size // shard, shard, 1))
    sync: Sync
    if shard == 1:
        if case.codec is None:
            sync = AllReduce(wire, mesh, case.bucket_bytes)
        else:
            sums = CodedSum(wire, wire.own_channel(mesh.data), case.codec, 1.0, wire.own_channel(mesh.data))
            sync = CodedAllReduce(wire, mesh, lambda places: sums, case.bucket_bytes)
    else:
        coded = CodedScatter(wire, mesh, case.codec) if case.codec else None
        if coded:
            coded.message = max(1, 10 // coded.multiple) * coded.multiple  # several messages, of which the last is shorter
        if kind == "zero1":
            sync = ShardedOptimizer(wire, mesh, case.bucket_bytes, coded)
        else:
            units = [layer for layer in model.children() if isinstance(layer, nn.Linear)][:-1]
            sync = FullySharded(wire, mesh, units, keep=kind == "zero2", coded=coded)
    sync.attach(model, whole_shards(model))
    return sync


def rows_of(rank: int, step: int) -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(100 * step + rank))


def own_gradients(rank: int, step: int, pieces: int = 1) -> dict[str, Tensor]:
    model = small_model(0)
    for chunk in rows_of(rank, step).chunk(pieces):
        model(chunk).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def parts_of(sync: Sync) -> list[tuple[Any, ...]]:
    return [
        (name, shard.shape, shard.boxes, shard.value.grad.clone())
        for name, shard in sync.shards.items()
        if shard.value.grad is not None
    ]


def summed(world: World, cases: list[Case]) -> list[dict[str, Any]]:
    """For every case: this rank's parts of the sums of each step, and its feedback and bytes in the end."""
    results = []
    for case in cases:
        model = small_model(0)
        sync = make(case, world, model)
        sync.wire.sent.clear()
        steps, weights = [], 0
        for step in range(STEPS):
            pieces = rows_of(world.rank, step).chunk(2)
            for index, piece in enumerate(pieces):
                sync.begin_backward(last=index == len(pieces) - 1)
                model(piece).square().sum().backward()
            sync.before_step()
            steps.append(parts_of(sync))
            sent = sync.wire.bytes_sent
            sync.after_step()
            weights += sync.wire.bytes_sent - sent
        feedback = {key: value.clone() for key, value in sync.own_state().items()}
        results.append(
            {
                "steps": steps,
                "feedback": feedback,
                "bytes": dict(sync.wire.sent),
                "foretold": foretold(sync),
                "weights": weights,
            }
        )
    return results


def foretold(sync: Sync) -> int:
    """The bytes of a step's gradients, by the formula."""
    if isinstance(sync, CodedAllReduce):
        return sum(sync.sums[bucket].wire_bytes(bucket.end - bucket.start) for bucket in sync.gradients.buckets)
    if isinstance(sync, ShardedOptimizer) and sync.coded is not None:
        lengths = [(bucket.end - bucket.start) // sync.mesh.shard.size for bucket in sync.gradients.buckets]
        return sum(sync.coded.wire_bytes(length) for length in lengths)
    if isinstance(sync, FullySharded) and sync.coded is not None:
        return sum(sync.coded.wire_bytes(unit.feedback.rows.shape[1]) for unit in sync.scatter_sums if unit.feedback)
    return 0


def test_the_formula_is_that_of_the_paper() -> None:
    """Pieces to all others, and back: 2 (N − 1) / N of what is summed, in the codec's bytes."""
    assert CodedSum(Wire(alone()), Axis(4), Coarse()).wire_bytes(400) == 2 * 3 / 4 * Coarse().nbytes(400)


@cache
def results_of(size: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    by_rank = run_ranks(size, summed, [CASES[division, codec] for division, codec in each_of(size)])
    return {name: [results[index] for results in by_rank] for index, name in enumerate(each_of(size))}


def each_of(size: int) -> list[tuple[str, str]]:
    return [(division, codec) for division, codec in CASES if size == 4 or "copies" not in division]


def whole(results: list[dict[str, Any]], step: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for result in results:
        for name, shape, boxes, values in result["steps"][step]:
            put(tensors.setdefault(name, torch.full(shape, torch.nan)), boxes, values)
    return tensors


CODED = [(size, *name) for size in (2, 4) for name in each_of(size) if name[1] != "NoneType"]


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.thorough), 4])
def test_what_its_codec_does_not_change_is_summed_in_the_order_of_ranks(size: int) -> None:
    for step in range(STEPS):
        expected: dict[str, Tensor] = {}
        for rank in range(size):
            for key, value in own_gradients(rank, step, pieces=2).items():
                expected[key] = expected[key] + value if key in expected else value
        torch.testing.assert_close(whole(results_of(size)["replicate", "Plain"], step), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "division"), [case[:2] for case in CODED if case[2] == "Plain"])
def test_what_its_codec_does_not_change_is_the_same_sum_as_without(size: int, division: str) -> None:
    coded, plain = (results_of(size)[division, codec] for codec in ("Plain", "NoneType"))
    # only an all-reduce over more than two ranks adds in another order
    exact = size == 2 or division != "replicate"
    for step in range(STEPS):
        torch.testing.assert_close(
            whole(coded, step), whole(plain, step), rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6
        )
    assert not any(value.any() for result in coded for value in result["feedback"].values())


@pytest.mark.parametrize(("size", "division", "codec"), CODED)
def test_what_was_not_summed_is_in_the_feedback(size: int, division: str, codec: str) -> None:
    results = results_of(size)[division, codec]
    for key, shape in ((name, value.shape) for name, value in small_model(0).named_parameters()):
        true = sum((own_gradients(rank, step)[key] for rank in range(size) for step in range(STEPS)), torch.zeros(shape))
        arrived = sum((whole(results, step)[key] for step in range(STEPS)), torch.zeros(shape))
        kept = sum((result["feedback"][f"{key}/dropped"] for result in results), torch.zeros(shape))
        torch.testing.assert_close(arrived + kept, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "division", "codec"), [case for case in CODED if case[1] == "replicate"])
def test_all_ranks_have_the_same_sums_to_the_bit(size: int, division: str, codec: str) -> None:
    first, *others = results_of(size)[division, codec]
    for step in range(STEPS):
        for other in others:
            torch.testing.assert_close(whole([other], step), whole([first], step), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "division", "codec"), CODED)
def test_bytes_are_those_of_the_formula(size: int, division: str, codec: str) -> None:
    results = results_of(size)
    for coded, plain in zip(results[division, codec], results[division, "NoneType"], strict=True):
        weights = plain["bytes"].get("all-gather", 0)
        if "zero1" in division:  # which gathers padding, too
            weights = coded["weights"]
        assert sum(coded["bytes"].values()) - weights == STEPS * coded["foretold"]


def moved(world: World, before: list[list[dict[str, Tensor]]], cases: list[Case]) -> list[dict[str, Tensor]]:
    """What this rank keeps of what other ranks had kept, for each case."""
    after = []
    for states, case in zip(before, cases, strict=True):
        sync = make(case, world, small_model(0))
        sync.load_own_state([state for rank, state in enumerate(states) if rank % world.size == world.rank])
        kept = sync.own_state() or {f"{name}/dropped": gradient for name, _, _, gradient in parts_of(sync)}
        after.append({key: value.clone() for key, value in kept.items()})
    return after


def test_feedback_moves_to_other_ranks_buckets_and_divisions_as_a_whole() -> None:
    journeys = [
        ("replicate", Case("two copies of zero3", Coarse())),
        ("zero3", Case("two copies of zero1", Coarse())),
        ("zero1", Case("replicate", Coarse(), bucket_bytes=1 << 20)),
    ]
    before = [[result["feedback"] for result in results_of(2)[division, "Coarse"]] for division, _ in journeys]
    cases = [case for _, case in journeys]
    alone_now = [[result] for result in moved(alone(), before, [Case("replicate", Coarse())] * 3)]
    for after in (zip(*run_ranks(4, moved, before, cases), strict=True), alone_now):
        for states, now in zip(before, after, strict=True):
            for key in states[0]:
                total = states[0][key] + states[1][key]
                assert total.any()
                torch.testing.assert_close(sum(state[key] for state in now), total)
