"""`parallel.sync: auto`: which strategy for which link, and that choosing leaves no trace."""

import gc
import json
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core import recipe as schema
from shoal.core.recipe import Recipe
from shoal.models.presets import make_config
from shoal.models.transformer import Transformer
from shoal.parallel.cost import Compute, step_seconds
from shoal.parallel.link import Link, measure
from shoal.parallel.mesh import Mesh, make_mesh
from shoal.parallel.shards import Shards, whole_shards
from shoal.parallel.throttle import FRAMING, Throttle
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import Causal
from shoal.train.auto import Auto, Rehearsal
from shoal.train.choice import Choice, Last, choose, cost_of, every_step
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, tiny_recipe

PARAMETERS = 13_900_000
COMPUTE = Compute(forward=1.0, backward=2.0, update=0.2)


def on_link(megabits: float, latency: float = 1e-4, **changes: Any) -> Choice:
    link = Link(megabits * 1e6 / 8, latency)
    return choose(link, COMPUTE, PARAMETERS, 2, schema.Parallel(**changes), optimizer="muon")


def test_a_fast_link_gives_plain_training() -> None:
    choice = on_link(10_000)
    assert (choice.sync, choice.codec) == ("every", "none")
    assert choice.share > 0.97


def test_slower_links_give_milder_codecs_first_and_local_updates_last() -> None:
    chosen = [(choice.sync, choice.codec) for choice in map(on_link, (10_000, 200, 100, 50, 10, 1))]
    order = [("every", kind) for kind in ("none", "bf16", "int8", "int4")] + [("local", "int4"), ("local", "two_bit")]
    places = [order.index(pair) for pair in chosen]
    assert places == sorted(places)
    assert len(set(places)) >= 5
    assert chosen[-1] == ("local", "two_bit")


def test_a_codec_that_would_hide_a_little_more_than_plain_training_is_not_taken() -> None:
    """Whatever the link: beside a milder way that is nearly as fast, no other is chosen."""
    plain = every_step(PARAMETERS, 2, "none", schema.Parallel(), Last())
    for megabits in range(200, 8_000, 100):
        choice, link = on_link(megabits), Link(megabits * 1e6 / 8, 1e-4)
        told = COMPUTE.total / step_seconds(COMPUTE, plain, link, 2)
        assert (choice.codec == "none") == (told >= 0.97 or choice.share <= 1.03 * told), megabits


def test_ranks_do_not_part_for_less_than_the_cost_model_is_sure_of() -> None:
    settings = schema.Parallel()
    parted = 0
    for step, megabits in product((0.3, 1.0, 3.0), (*range(10, 200, 3), *range(200, 2_000, 7))):
        link, compute = Link(megabits * 1e6 / 8, 1e-4), Compute(step / 3, 2 * step / 3)
        choice = choose(link, compute, PARAMETERS, 2, settings)
        every = [every_step(PARAMETERS, 2, kind, settings, Last()) for kind in ("none", "bf16", "int8", "int4")]
        best = max(compute.total / step_seconds(compute, traffic, link, 2) for traffic in every)
        parted += choice.sync == "local"
        assert choice.sync == "every" or choice.share > 1.03 * best, (step, megabits)
    assert parted


def test_local_updates_take_the_fewest_steps_that_reach_it() -> None:
    choice = on_link(1)
    assert choice.sync == "local"
    assert choice.share >= 0.95
    slower = on_link(0.5)
    assert slower.every > choice.every


def test_local_updates_are_chosen_with_parts_that_travel_one_after_the_other(corpus: Path) -> None:
    choice = on_link(1)
    local = choice.apply(tiny_recipe(corpus)).parallel.local
    assert local.every == choice.every >= local.fragments * local.overlap > 0


def test_two_bits_come_with_outer_momentum_unless_the_recipe_has_an_outer_step(corpus: Path) -> None:
    choice = on_link(1)
    assert choice.codec == "two_bit"
    local = choice.apply(tiny_recipe(corpus)).parallel.local
    assert (local.outer, local.learning_rate, local.momentum) == ("nesterov", 0.9, 0.3)
    assert "outer momentum" in choice.reasons[1]
    own = schema.Local(outer="nesterov", learning_rate=0.5, momentum=0.8)
    kept = on_link(1, local=own).apply(tiny_recipe(corpus, parallel={"local": asdict(own)})).parallel.local
    assert (kept.outer, kept.learning_rate, kept.momentum) == ("nesterov", 0.5, 0.8)


@pytest.mark.parametrize("megabits", [1, 20])
def test_adamw_steps_to_the_mean_and_no_further(corpus: Path, megabits: float) -> None:
    link = Link(megabits * 1e6 / 8, 1e-4)
    muon, adamw = (choose(link, COMPUTE, PARAMETERS, 2, schema.Parallel(), optimizer=kind) for kind in ("muon", "adamw"))
    assert (muon.every, muon.codec) == (adamw.every, adamw.codec)
    assert muon.outer and not adamw.outer
    local = adamw.apply(tiny_recipe(corpus)).parallel.local
    assert (local.outer, local.learning_rate) == ("sgd", 1.0)


def test_ranks_that_meet_often_step_further_than_their_mean() -> None:
    found = {choice.every: choice for choice in map(on_link, (20, 10, 5, 3, 2)) if choice.codec == "int4" and choice.every}
    assert min(found) <= 4 < max(found)
    for every, choice in found.items():
        assert choice.outer == ({"outer": "sgd", "learning_rate": 1.2} if every <= 4 else {})
        assert ("an outer step of 1.2" in choice.reasons[1]) == (every <= 4)
    own = on_link(20, local=schema.Local(learning_rate=0.7))
    assert (own.sync, own.every, own.outer) == ("local", 4, {})


def test_meeting_seldom_must_promise_more_than_meeting_every_few_steps() -> None:
    """Every 4 steps lose a tenth of the loss of every 8 (docs/communication.md)."""
    link, settings = Link(20e6 / 8, 1e-4), schema.Parallel()
    whole, less, least = (choose(link, replace(COMPUTE, core=core), PARAMETERS, 2, settings) for core in (1.0, 0.36, 0.25))
    assert [choice.every for choice in (whole, less, least)] == [4, 4, 8]
    assert whole.share > 0.97 > less.share > 0.95


@pytest.mark.parametrize(("ranks", "rate"), [(2, 1.2), (3, 1.2), (4, 1.6), (8, 1.6)])
def test_more_ranks_step_further(ranks: int, rate: float) -> None:
    choice = choose(Link(20e6 / 8, 1e-4), COMPUTE, PARAMETERS, ranks, schema.Parallel(), optimizer="muon")
    assert (choice.sync, choice.every) == ("local", 4)
    assert choice.outer["learning_rate"] == rate and f"an outer step of {rate:g}" in choice.reasons[1]


def test_what_encoded_bytes_cost_a_core_counts() -> None:
    quick = Compute(forward=0.27, backward=0.54, update=0.06)  # there int8 at every step had 91% (docs/communication.md)
    choice = choose(Link(300e6 / 8, 1e-4), quick, PARAMETERS, 2, schema.Parallel(), Last(0.226, 0.02))
    assert choice.sync == "local"


def test_what_a_sum_was_measured_to_cost_a_core_decides_between_every_step_and_local_updates() -> None:
    link, settings = Link(50e6 / 8, 1e-4), schema.Parallel()
    cheap, dear, shared = (
        choose(link, replace(COMPUTE, core=core), PARAMETERS, 2, settings, costs={"int4": seconds / PARAMETERS})
        for seconds, core in ((0.02, 1.0), (0.4, 1.0), (0.1, 0.25))
    )
    assert (cheap.sync, cheap.codec) == ("every", "int4")
    assert (dear.sync, shared.sync) == ("local", "local")
    at_every_step = every_step(PARAMETERS, 2, "int4", settings, Last(), {"int4": 0.4 / PARAMETERS})
    assert COMPUTE.total / step_seconds(COMPUTE, at_every_step, link, 2) < 0.9 < 0.97 < cheap.share


def test_int4_is_kept_where_two_bits_would_need_as_many_steps() -> None:
    quick = Compute(forward=0.06, backward=0.13, update=0.01)  # encoding and copying are what costs, not the link
    choice = choose(Link(100e6 / 8, 1e-4), quick, PARAMETERS, 2, schema.Parallel())
    assert (choice.sync, choice.codec) == ("local", "int4")


def test_ranks_with_unequal_shares_do_not_part() -> None:
    link = Link(1e6 / 8, 1e-4)
    choice = choose(link, COMPUTE, PARAMETERS, 3, schema.Parallel(), equal_shares=False)
    assert choice.sync == "every"


def test_a_link_that_hides_all_but_a_whole_embedding_serves_where_its_rows_travel_apart() -> None:
    link = Link(70e6 / 8, 1e-4)
    late, apart = (choose(link, COMPUTE, PARAMETERS, 2, schema.Parallel(), Last(0.25, coded)) for coded in (0.25, 0.05))
    assert (late.sync, apart.sync, apart.codec) == ("local", "every", "int4")


def test_where_latency_is_all_codecs_are_not_chosen() -> None:
    assert on_link(10_000, latency=0.1).codec != "bf16"


def test_the_reasons_are_two_lines_with_the_numbers() -> None:
    first, second = on_link(50).reasons
    assert "50 Mbit/s" in first and "3.2 s a step" in first
    assert second.startswith("auto: ")


@pytest.mark.parametrize(
    "parallel",
    [{"sync": "every"}, {"sync": "local"}, {"shard": "zero1"}, {"tensor": 2}, {"exact": True}, {"codec": {"kind": "int8"}}],
)
def test_what_the_recipe_says_is_not_decided(corpus: Path, parallel: dict[str, Any]) -> None:
    two = Wire(replace(alone(), size=2))
    assert Auto(tiny_recipe(corpus), two).asked
    assert not Auto(tiny_recipe(corpus, parallel=parallel), two).asked
    assert not Auto(tiny_recipe(corpus), Wire(alone())).asked


def test_a_run_goes_on_with_what_its_checkpoint_was_made_with(corpus: Path) -> None:
    choice = on_link(1)
    saved = json.loads(json.dumps(asdict(choice)))
    auto = Auto(tiny_recipe(corpus), Wire(replace(alone(), size=2)), saved)
    model = Transformer(make_config("gpt2-small", vocabulary=30, context=16, layers=1, dim=16, heads=2))
    parallel = auto.decide(model, Causal(), nullcontext(), 1, 1, Mesh(), {}).parallel
    assert (parallel.sync, parallel.codec.kind, parallel.local.every) == ("local", choice.codec, choice.every)
    assert auto.state == asdict(choice)


def test_a_run_of_before_parts_were_kept_goes_on_with_those_that_it_had(corpus: Path) -> None:
    saved = {"sync": "local", "codec": "int4", "share": 0.96, "reasons": ["one", "two"], "every": 16, "overlap": 4}
    local = Choice.of_state(saved).apply(tiny_recipe(corpus)).parallel.local
    assert (local.every, local.fragments, local.overlap, local.outer) == (16, 4, 4, "sgd")


def test_timing_a_step_leaves_no_trace() -> None:
    wire = Wire(alone())
    model = Transformer(make_config("gpt2-small", vocabulary=30, context=16, layers=1, dim=16, heads=2)).materialise()
    model.initialise(torch.Generator().manual_seed(1), 0.02, None, False)
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    compute = Rehearsal(model, Causal(), nullcontext(), wire, sequences=2).time_step(passes=3)
    assert compute.forward > 2 * compute.backward > 0
    assert 0 < compute.core <= 1
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def _floats_of(least: int) -> int:
    """How many tensors that large there are."""
    return sum(isinstance(one, torch.Tensor) and one.numel() >= least for one in gc.get_objects())


def rehearsed_meeting(world: World, recipe: Recipe, tied: bool) -> tuple[float, bool]:
    wire = Wire(world, throttle=Throttle(10.0, 0.0, world.device))
    shape = {"vocabulary": 2_000, "context": 16, "layers": 1, "dim": 256, "heads": 2, "tied": tied}
    model = Transformer(make_config("gpt2-small", **shape)).materialise()
    model.initialise(torch.Generator().manual_seed(1), 0.02, None, False)
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    mesh, shards = make_mesh(world, (2, 1, 1)), whole_shards(model)
    gc.collect()
    large = _floats_of(1_000_000)
    seconds = Rehearsal(model, Causal(), nullcontext(), wire, sequences=2).time_meeting(recipe, mesh, shards)
    assert _floats_of(1_000_000) == large  # no gradients stay
    assert all(value.grad is None for value in model.parameters())
    untouched = torch.equal(torch.get_rng_state(), random) and model.tied_gradients is None
    untouched &= all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (model(torch.ones(1, 16, dtype=torch.int64)).sum()).backward()  # nothing waits for gradients any more
    return seconds, untouched and not any(value._post_accumulate_grad_hooks for value in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_a_codec_is_rehearsed_as_it_would_train_and_leaves_no_trace(corpus: Path, tied: bool) -> None:
    recipe = tiny_recipe(corpus, parallel={"sync": "every", "codec": {"kind": "int4"}})
    found = run_ranks(2, rehearsed_meeting, recipe, tied)
    assert found[0] == found[1]  # so all choose alike
    seconds, untouched = found[0]
    assert untouched and seconds > 0.2  # some 0.7 MB at 10 Mbit/s, beside a backward of no time


def test_what_was_measured_is_foretold_with_the_cost_that_follows_from_it() -> None:
    link, settings, last = Link(100e6 / 8, 1e-4), schema.Parallel(), Last(0.2, 0.05)
    for compute in (COMPUTE, replace(COMPUTE, core=0.5)):
        for longer in (0.3, 0.7):
            cost = cost_of("int4", longer, link, compute, PARAMETERS, 2, settings, last)
            traffic = every_step(PARAMETERS, 2, "int4", settings, last, {"int4": cost})
            assert step_seconds(compute, traffic, link, 2) == pytest.approx(compute.total + longer)
    assert cost_of("int4", 0.0, link, COMPUTE, PARAMETERS, 2, settings, last) == 0.0


def test_a_codec_is_taken_only_where_it_is_cheap_beside_computing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 is foretold to be hidden; where it costs more than other machines measured, the next is tried, and so on."""
    tried: list[str] = []
    longer = {"int8": 1.0, "int4": 0.8}

    def time_meeting(rehearsal: Rehearsal, recipe: Recipe, mesh: Mesh, shards: Shards) -> float:
        assert recipe.parallel.sync == "every"
        tried.append(recipe.parallel.codec.kind)
        return longer[tried[-1]]

    monkeypatch.setattr("shoal.train.auto.on_one_machine", lambda wire: False)
    monkeypatch.setattr("shoal.train.auto.measure", lambda wire: Link(100e6 / 8, 1e-4))
    monkeypatch.setattr("shoal.train.auto.Last.of_model", lambda *_: Last())
    monkeypatch.setattr(Rehearsal, "time_step", lambda rehearsal, passes: COMPUTE)
    monkeypatch.setattr(Rehearsal, "time_meeting", time_meeting)
    model = Transformer(make_config("gpt2-small", vocabulary=9_000, context=512, layers=6, dim=384, heads=6))
    recipe, two = tiny_recipe(corpus), Wire(replace(alone(), size=2))
    auto = Auto(recipe, two)
    auto.decide(model, Causal(), nullcontext(), 1, 1, Mesh(), {})
    assert tried == ["int8", "int4"] and auto.choice is not None and auto.choice.sync == "local"
    longer["int4"] = 0.01
    auto = Auto(recipe, two)
    parallel = auto.decide(model, Causal(), nullcontext(), 1, 1, Mesh(), {}).parallel
    assert (parallel.sync, parallel.codec.kind) == ("every", "int4")


class Watched(Causal):
    """Notes when each pass begins; the first takes longer on rank 1, as one that compiles would."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.begun = rank, list[float]()

    def batch(self, *arguments: Any) -> Any:
        self.begun.append(time.monotonic())
        if self.rank == 1 and len(self.begun) == 1:
            time.sleep(0.5)
        return super().batch(*arguments)


def timed_passes(world: World) -> list[float]:
    model = Transformer(make_config("gpt2-small", vocabulary=30, context=16, layers=1, dim=16, heads=2)).materialise()
    model.initialise(torch.Generator().manual_seed(1), 0.02, None, False)
    task = Watched(world.rank)
    Rehearsal(model, task, nullcontext(), Wire(world), sequences=2).time_step(passes=1)
    return task.begun


def test_no_rank_times_a_step_while_another_still_compiles() -> None:
    begun = run_ranks(2, timed_passes)
    assert min(of_rank[1] for of_rank in begun) >= begun[1][0] + 0.5


def slow_ranks(world: World, recipe: Recipe, folder: Path) -> tuple[Link, dict[str, Any] | None, dict[str, Any] | None]:
    link = measure(Wire(world, throttle=Throttle(8 * FRAMING, 0.01, world.device)))
    fast = build_parts(recipe, folder / "fast", world)
    fast.telemetry.close()
    slow = replace(recipe, parallel=schema.Parallel(link=schema.Link(megabits=0.5)))
    parts = build_parts(slow, folder / "slow", world)
    parts.telemetry.close()
    return link, fast.auto.state, parts.auto.state


def test_ranks_measure_the_link_and_agree_on_what_it_asks_for(corpus: Path, tmp_path: Path) -> None:
    found = run_ranks(2, slow_ranks, tiny_recipe(corpus), tmp_path)
    assert found[0] == found[1]
    link, inside, slow = found[0]
    assert 0 < link.bandwidth < 1.2e6 and link.latency > 0.008  # no faster than it is
    assert inside is None  # one machine: plain, and nothing was measured
    assert slow is not None and (slow["sync"], slow["codec"]) != ("every", "none")
