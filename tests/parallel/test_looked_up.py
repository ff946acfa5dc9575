"""A tied weight's two gradients, summed apart: together they are what they were, and the rows are cheap."""

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.core.recipe import Codec as CodecSettings
from shoal.models.config import TransformerConfig
from shoal.models.loss import linear_cross_entropy
from shoal.models.transformer import Transformer
from shoal.parallel.codecs import CODECS
from shoal.parallel.codecs.plain import Plain
from shoal.parallel.coded_all_reduce import CodedAllReduce
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.looked_up import LookedUp
from shoal.parallel.mesh import make_mesh
from shoal.parallel.shards import whole_shards
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import run_ranks

VOCABULARY, DIM, TOKENS, STEPS = 203, 32, 6, 3
SIZES = (2, 4)
ONE_BUCKET = "plain, in one bucket"


def small_model() -> Transformer:
    shape = TransformerConfig(
        vocabulary=VOCABULARY, context=TOKENS, layers=1, dim=DIM, heads=2, kv_heads=2, head_dim=16, hidden=48
    )
    return Transformer(shape).materialise().initialise(torch.Generator().manual_seed(1), std=0.3)


def tokens_of(rank: int, step: int) -> Tensor:
    """Two micro-batches; some tokens are in both, and on other ranks, too. In the last step all ranks read one token."""
    if step == STEPS - 1:
        return torch.full((2, 1, TOKENS + 1), 7)
    return torch.randint(0, 40, (2, 1, TOKENS + 1), generator=torch.Generator().manual_seed(10 * step + rank))


def backward(model: Transformer, tokens: Tensor) -> None:
    """The first tokens count twice, so that the projection is used, and has a gradient, at two places."""
    hidden, targets = model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
    losses = [linear_cross_entropy(hidden[:2], model.head_weight, targets[:2])]
    losses.append(linear_cross_entropy(hidden, model.head_weight, targets))
    torch.stack(losses).sum().backward()


def true_gradients(ranks: int, step: int) -> dict[str, Tensor]:
    model = small_model()
    for rank in range(ranks):
        for micro_batch in tokens_of(rank, step):
            backward(model, micro_batch)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def codec_of(kind: str) -> Any:
    return Plain() if kind in ("plain", ONE_BUCKET) else CODECS[kind](CodecSettings())


def summed(world: World, kinds: list[str]) -> dict[str, dict[str, Any]]:
    """With each codec: the sums of each step, what was dropped in the end, and the bytes of each step."""
    return {kind: _summed(world, codec_of(kind), 1 << 20 if kind == ONE_BUCKET else 4096) for kind in kinds}


def _summed(world: World, codec: Any, bucket_bytes: int) -> dict[str, Any]:
    wire, mesh, model = Wire(world), make_mesh(world, (world.size, 1, 1)), small_model()
    sums = CodedSum(wire, wire.own_channel(mesh.data), codec, 1.0, wire.own_channel(mesh.data))
    rows = LookedUp(wire, mesh.data, codec, model.get_parameter("embedding.weight"))
    sync = CodedAllReduce(wire, mesh, lambda places: sums, bucket_bytes, rows=rows)
    sync.attach(model, whole_shards(model))
    model.tied_gradients = sync
    steps, sent = [], [wire.bytes_sent]
    for step in range(STEPS):
        for index, micro_batch in enumerate(tokens_of(world.rank, step)):
            sync.begin_backward(last=index == 1)
            backward(model, micro_batch)
        early = sync.gradients.buckets[0].work is not None
        sync.before_step()
        steps.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})  # type: ignore[union-attr]
        sent.append(wire.bytes_sent)
        sync.after_step()
    dense = sum(sums.wire_bytes(bucket.end - bucket.start) for bucket in sync.gradients.buckets)
    dropped = {key: value.clone() for key, value in sync.own_state().items()}
    return {
        "steps": steps,
        "dropped": dropped,
        "rows": [after - before - dense for before, after in pairwise(sent)],
        "early": early,
    }


KINDS = ["plain", ONE_BUCKET, "bf16", "int8", "int4", "two_bit", "topk", "sign"]


@cache
def results_of(size: int) -> list[dict[str, dict[str, Any]]]:
    return run_ranks(size, summed, KINDS)


@pytest.mark.parametrize("kind", ["plain", ONE_BUCKET])
@pytest.mark.parametrize("size", SIZES)
def test_together_they_are_the_whole_gradient(size: int, kind: str) -> None:
    for step in range(STEPS):
        found = results_of(size)[0][kind]["steps"][step]
        for name, true in true_gradients(size, step).items():
            torch.testing.assert_close(found[name], true, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_what_did_not_arrive_is_in_the_feedback(size: int, kind: str) -> None:
    results = [of_rank[kind] for of_rank in results_of(size)]
    for name, first in true_gradients(size, 0).items():
        true = first + sum(true_gradients(size, step)[name] for step in range(1, STEPS))
        arrived = sum(results[0]["steps"][step][name] for step in range(STEPS))
        kept = sum(of_rank["dropped"][f"{name}/dropped"] for of_rank in results)
        torch.testing.assert_close(arrived + kept, true, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_have_the_same_sums_to_the_bit(size: int, kind: str) -> None:
    first, *others = (of_rank[kind]["steps"] for of_rank in results_of(size))
    for other in others:
        for mine, its in zip(first, other, strict=True):
            assert all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_rank_sends_its_own_rows_to_the_others_and_a_bit_a_row_of_the_table(size: int, kind: str) -> None:
    for rank, of_rank in enumerate(results_of(size)):
        for step in range(STEPS):
            distinct = tokens_of(rank, step)[:, :, :-1].unique().numel()
            expected = (size - 1) * (codec_of(kind).nbytes(distinct * DIM) + -(-VOCABULARY // 8))
            assert of_rank[kind]["rows"][step] == expected


@pytest.mark.parametrize("size", SIZES)
def test_the_projections_gradient_leaves_while_backward_runs(size: int) -> None:
    assert all(of_rank["plain"]["early"] for of_rank in results_of(size))
