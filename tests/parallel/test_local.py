"""Local updates: what copies of a model agree on when they meet, and what they keep of their own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.core import recipe
from shoal.core.errors import RecipeError
from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.codecs.codec import Codec
from shoal.parallel.codecs.plain import Plain
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.fully_sharded import FullySharded
from shoal.parallel.local import Local
from shoal.parallel.mesh import Mesh, make_mesh, within_copy
from shoal.parallel.sharded_optimizer import ShardedOptimizer
from shoal.parallel.shards import put, whole_shards
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks

EVERY_STEP = recipe.Local(every=1, outer="sgd", learning_rate=1.0)
RATE = 0.05


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2))


def inner_sync(kind: str, wire: Wire, mesh: Mesh, model: nn.Sequential) -> Sync:
    if kind == "replicate":
        return AllReduce(wire, mesh)
    if kind == "zero1":
        return ShardedOptimizer(wire, mesh)
    return FullySharded(wire, mesh, [layer for layer in model if isinstance(layer, nn.Linear)][:-1], keep=False)


def make(world: World, model: nn.Sequential, settings: recipe.Local, codec: Codec | None = None, kind: str = "") -> Local:
    wire, shard = Wire(world), 2 if kind else 1
    mesh = make_mesh(world, (world.size // shard, shard, 1))
    inner = inner_sync(kind or "replicate", wire, within_copy(mesh), model)
    sums = CodedSum(wire, wire.own_channel(mesh.replicate), codec) if codec else None
    sync = Local(wire, mesh, inner, settings, sums)
    sync.attach(model, whole_shards(model))
    return sync


def rows_of(step: int) -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(step))


def descend(sync: Local, model: nn.Module, step: int, wrong: bool = False) -> None:
    """One step of gradient descent on the mean over all rows, as the loop does it."""
    world = sync.wire.world
    rows = rows_of(step)[world.rank :: world.size]
    sync.begin_backward(last=True)
    model(rows).square().sum().backward()
    sync.before_step()
    targets = sync.sum_totals(torch.tensor([[0.0, len(rows), 0.0]], dtype=torch.float64))[1].item()
    assert targets == 8
    sync.scale_grads(RATE / targets)
    with torch.no_grad():
        for shard in sync.shards.values():
            if shard.value.grad is not None:
                shard.value.sub_(shard.value.grad)
            if wrong:
                shard.value.fill_(torch.nan)
    sync.after_step()


def weights(sync: Local) -> list[Any]:
    return [(name, shard.shape, shard.boxes, shard.value.detach().clone()) for name, shard in sync.shards.items()]


def whole(parts: list[Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, shape, boxes, values in parts:
        put(tensors.setdefault(name, torch.full(shape, torch.nan)), boxes, values)
    return tensors


def trained(
    world: World, steps: int, settings: recipe.Local, codec: Codec | None = None, kind: str = "", wrong_at: int = 0
) -> list[Any]:
    model = small_model()
    sync = make(world, model, settings, codec, kind)
    for step in range(1, steps + 1):
        descend(sync, model, step, wrong=step == wrong_at and world.rank == 1)
    return weights(sync)


def trained_alone(steps: int, of: int = 1, rank: int = 0) -> dict[str, Tensor]:
    """Plain gradient descent, on every row or on those of one rank."""
    alone()
    model = small_model()
    for step in range(1, steps + 1):
        model.zero_grad()
        rows = rows_of(step)[rank::of]
        (model(rows).square().sum() / len(rows)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=RATE)
    return {name: value.detach() for name, value in model.named_parameters()}


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.thorough), 4])
@pytest.mark.parametrize("codec", [None, Plain()], ids=["plain", "identity codec"])
def test_meeting_at_every_step_with_plain_sgd_is_data_parallel_training(size: int, codec: Codec | None) -> None:
    results = run_ranks(size, trained, 5, EVERY_STEP, codec)
    for parts in results:
        check_close(whole(parts), trained_alone(5))


@pytest.mark.parametrize("kind", ["replicate", "zero1", "zero3"])
def test_copies_may_be_divided_within(kind: str) -> None:
    results = run_ranks(4, trained, 4, EVERY_STEP, None, kind)
    check_close(whole([part for parts in results[:2] for part in parts]), trained_alone(4))
    check_close(whole([part for parts in results[2:] for part in parts]), trained_alone(4))


def test_ranks_step_apart_and_then_take_the_mean() -> None:
    apart, met = (run_ranks(2, trained, steps, replace(EVERY_STEP, every=3)) for steps in (2, 3))
    for rank, parts in enumerate(apart):
        check_close(whole(parts), trained_alone(2, of=2, rank=rank))
    ends = [trained_alone(3, of=2, rank=rank) for rank in range(2)]
    for parts in met:
        check_close(whole(parts), {name: (ends[0][name] + ends[1][name]) / 2 for name in ends[0]})


def test_the_outer_step_is_torchs_nesterov() -> None:
    settings = recipe.Local(every=1, outer="nesterov", learning_rate=0.7, momentum=0.9)
    found = run_ranks(2, trained, 4, settings)[0]
    model = small_model()
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    for step in range(1, 5):
        model.zero_grad()
        (model(rows_of(step)).square().sum() * (RATE / 8)).backward()  # both copies start from the same weights
        outer.step()
    check_close(whole(found), {name: value.detach() for name, value in model.named_parameters()})


def test_copies_are_plain_until_they_part() -> None:
    for parts in run_ranks(2, trained, 5, replace(EVERY_STEP, every=4, after=5)):
        check_close(whole(parts), trained_alone(5))
    apart = run_ranks(2, trained, 7, replace(EVERY_STEP, every=4, after=5))
    assert not torch.equal(whole(apart[0])["0.weight"], whole(apart[1])["0.weight"])


def streaming(world: World, settings: recipe.Local, steps: int) -> dict[str, Any]:
    model = small_model()
    sync = make(world, model, settings, Plain())
    commons = []
    for step in range(1, steps + 1):
        descend(sync, model, step)
        commons.append(sync.common.clone())
    with sync.common_weights():
        shown = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    own = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    sync.settle()
    settled = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {
        "commons": commons,
        "shown": shown,
        "own": own,
        "settled": settled,
        "pieces": sync.pieces,
        "bytes": sync.wire.sent,
    }


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_fragments_meet_at_different_times_while_ranks_go_on(mix: float) -> None:
    settings = recipe.Local(every=6, outer="nesterov", fragments=3, overlap=2, mix=mix, learning_rate=0.5)
    left, right = run_ranks(2, streaming, settings, 9)
    for mine, others in zip(left["commons"], right["commons"], strict=True):
        assert torch.equal(mine, others)
    changed = [
        [bool((after[start:end] != before[start:end]).any()) for start, end in left["pieces"]]
        for before, after in zip(left["commons"], left["commons"][1:], strict=False)
    ]
    nothing = [False, False, False]  # sent after steps 2, 4, 6, 8; taken in two steps later (the first row is step 2)
    arrived = [[True, False, False], nothing, [False, True, False], nothing, [False, False, True], nothing]
    assert changed == [nothing, nothing, *arrived]
    length = len(left["shown"])
    assert torch.equal(left["shown"], left["commons"][-1][:length])
    assert not torch.equal(left["own"], right["own"])
    assert torch.equal(left["settled"], right["settled"])


def test_what_a_rank_changes_while_a_fragment_travels_is_not_lost() -> None:
    """Two steps alone, of which the second happens during the flight: the mean of the first, and one's own second."""
    for rank, parts in enumerate(run_ranks(2, trained, 2, replace(EVERY_STEP, every=1, overlap=1))):
        first = [trained_alone(1, of=2, rank=other) for other in range(2)]
        both = trained_alone(2, of=2, rank=rank)
        expected = {name: (first[0][name] + first[1][name]) / 2 + both[name] - first[rank][name] for name in first[0]}
        check_close(whole(parts), expected)


def test_a_copy_that_is_lost_takes_the_common_weights() -> None:
    for parts in run_ranks(2, trained, 5, replace(EVERY_STEP, every=2), None, "", 3):
        assert all(values.isfinite().all() for *_, values in parts)


def resumed(world: World, settings: recipe.Local, codec: Codec | None, pause: int) -> dict[str, Any]:
    model = small_model()
    sync = make(world, model, settings, codec)
    for step in range(1, 11):
        if step == pause:
            state = {name: value.clone() for name, value in sync.state_dict().items()}
            own = {name: value.clone() for name, value in sync.own_state().items()}
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            model = small_model()
            sync = make(world, model, settings, codec)
            model.load_state_dict(weights)
            sync.load_state_dict(state)
            sync.load_own_state([own])
        descend(sync, model, step)
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("pause", [4, pytest.param(6, marks=pytest.mark.thorough)])
def test_it_goes_on_bitwise_also_with_a_fragment_under_way(pause: int) -> None:
    settings = recipe.Local(every=4, outer="nesterov", fragments=2, overlap=2, warmup=3)
    codec = Plain()
    whole_run, broken_run = (run_ranks(2, resumed, settings, codec, step) for step in (0, pause))
    for mine, expected in zip(broken_run, whole_run, strict=True):
        for name, value in expected.items():
            assert torch.equal(mine[name], value), name


def test_more_in_flight_than_one_fragment_is_refused() -> None:
    with pytest.raises(RecipeError, match="one fragment travels at a time"):
        make(alone(), small_model(), recipe.Local(every=4, fragments=2, overlap=3))
