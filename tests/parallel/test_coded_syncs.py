"""Sums of encoded gradients, however the model is divided: nothing is lost, and every byte is foretold."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.parallel.coded_all_reduce import CodedAllReduce
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.mesh import make_mesh
from shoal.parallel.shards import put, whole_shards
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.parallel.test_syncs import small_model
from tests.ranks import alone, run_ranks

STEPS = 3


class Identity:
    """fp32 as it is."""

    block = 1

    def nbytes(self, length: int) -> int:
        return 4 * length

    def encode(self, values: Tensor, payload: Tensor) -> None:
        payload.view(torch.float32).copy_(values)

    def decode(self, payload: Tensor, values: Tensor) -> None:
        values.copy_(payload.view(torch.float32))


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

    def decode(self, payload: Tensor, values: Tensor) -> None:
        levels = payload.view(-1, 8)
        scales = levels[:, 4:].contiguous().view(torch.float32)
        values.view(-1, 4).copy_(levels[:, :4].contiguous().view(torch.int8) * scales)


@dataclass(frozen=True)
class Case:
    """A division and a codec."""

    division: str
    codec: Any
    shard: int = 0
    bucket_bytes: int = 60


CODECS = (Identity(), Coarse())
CASES = {
    f"{division} with {type(codec).__name__}": Case(division, codec)
    for division in ("replicate",)
    for codec in CODECS
}  # fmt: skip


def make(case: Case, world: World, model: nn.Module) -> Sync:
    wire = Wire(world)
    shard = 1 if case.division == "replicate" else case.shard or world.size
    mesh = make_mesh(world, (world.size // shard, shard, 1))
    sums = CodedSum(wire, wire.own_channel(mesh.data), case.codec, 1.0, wire.own_channel(mesh.data))
    sync = CodedAllReduce(wire, mesh, lambda places: sums, case.bucket_bytes, 40)
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
        steps = []
        for step in range(STEPS):
            pieces = rows_of(world.rank, step).chunk(2)
            for index, piece in enumerate(pieces):
                sync.begin_backward(last=index == len(pieces) - 1)
                model(piece).square().sum().backward()
            sync.before_step()
            steps.append(parts_of(sync))
            sync.after_step()
        feedback = {key: value.clone() for key, value in sync.own_state().items()}
        lengths = [bucket.end - bucket.start for bucket in sync.gradients.buckets]
        results.append({"steps": steps, "feedback": feedback, "bytes": dict(sync.wire.sent), "lengths": lengths})
    return results


@cache
def results_of(size: int) -> dict[str, list[dict[str, Any]]]:
    by_rank = run_ranks(size, summed, list(CASES.values()))
    return {name: [results[index] for results in by_rank] for index, name in enumerate(CASES)}


def whole(results: list[dict[str, Any]], step: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for result in results:
        for name, shape, boxes, values in result["steps"][step]:
            put(tensors.setdefault(name, torch.full(shape, torch.nan)), boxes, values)
    return tensors


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.codec, Identity)])
def test_what_is_not_changed_by_its_codec_is_summed_in_the_order_of_ranks(size: int, name: str) -> None:
    results = results_of(size)[name]
    for step in range(STEPS):
        expected: dict[str, Tensor] = {}
        for rank in range(size):
            for key, value in own_gradients(rank, step, pieces=2).items():
                expected[key] = expected[key] + value if key in expected else value
        torch.testing.assert_close(whole(results, step), expected, rtol=0, atol=0)
    for result in results:
        assert not any(value.any() for value in result["feedback"].values())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_what_was_not_summed_is_in_the_feedback(size: int, name: str) -> None:
    results = results_of(size)[name]
    for key, shape in ((name, value.shape) for name, value in small_model(0).named_parameters()):
        true = sum((own_gradients(rank, step)[key] for rank in range(size) for step in range(STEPS)), torch.zeros(shape))
        arrived = sum((whole(results, step)[key] for step in range(STEPS)), torch.zeros(shape))
        kept = sum((result["feedback"][f"{key}/dropped"] for result in results), torch.zeros(shape))
        torch.testing.assert_close(arrived + kept, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.division == "replicate"])
def test_all_ranks_have_the_same_sums_to_the_bit(size: int, name: str) -> None:
    first, *others = results_of(size)[name]
    for step in range(STEPS):
        for other in others:
            torch.testing.assert_close(whole([other], step), whole([first], step), rtol=0, atol=0)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_of_the_formula(size: int, name: str) -> None:
    case = CASES[name]
    for result in results_of(size)[name]:
        once = STEPS * (size - 1) * sum(case.codec.nbytes(length // size) for length in result["lengths"])
        assert result["bytes"] == {"all-to-all": once, "all-gather": once}


def moved(world: World, states: list[dict[str, Tensor]], case: Case) -> dict[str, Tensor]:
    sync = make(case, world, small_model(0))
    sync.load_own_state([state for rank, state in enumerate(states) if rank % world.size == world.rank])
    return sync.own_state() or {f"{name}/dropped": grad for name, _, _, grad in parts_of(sync)}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.codec, Coarse)])
def test_feedback_moves_to_other_ranks_and_buckets_as_a_whole(name: str) -> None:
    before = [result["feedback"] for result in results_of(2)[name]]
    total = {key: before[0][key] + before[1][key] for key in before[0]}
    assert all(value.any() for value in total.values())
    case = Case(CASES[name].division, CASES[name].codec, bucket_bytes=1 << 20)
    for after in (run_ranks(4, moved, before, case), [moved(alone(), before, case)]):
        for key, value in total.items():
            torch.testing.assert_close(sum(state[key] for state in after), value)
