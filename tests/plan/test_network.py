"""What meeting costs: as measured inside one machine, by the cost model elsewhere."""

from dataclasses import replace
from typing import Any

import pytest

from shoal.core.recipe_file import build_recipe
from shoal.parallel.cost import step_seconds
from shoal.parallel.link import Link
from shoal.plan.network import Group, Meeting, compute_of, find_meeting, link_of
from shoal.train.choice import Last, choose, every_step
from tests.plan.test_forecast import REHEARSAL

GROUP = Group(workers=2, machines=1, link=None, sent=44_000_000, parameters=11_000_000, last=Last(0.2, 0.05))


def recipe_of(**parallel: Any) -> Any:
    return build_recipe({"train": {"steps": 5, "global_batch": 8}, "parallel": parallel})


def meeting_of(recipe: Any, group: Group) -> Meeting:
    return find_meeting(recipe, group, REHEARSAL, 8, 2, 2)


def test_inside_one_machine_it_is_what_was_measured() -> None:
    assert meeting_of(recipe_of(), GROUP) == Meeting("every", "none", 44_000_000, REHEARSAL.waiting)
    apart = meeting_of(recipe_of(sync="local", local={"every": 5}), GROUP)
    assert (apart.sync, apart.seconds) == ("local", REHEARSAL.waiting / 5)


@pytest.mark.parametrize("megabits", [10_000.0, 100.0, 10.0, 1.0])
def test_on_a_link_it_is_what_auto_would_choose(megabits: float) -> None:
    recipe = recipe_of()
    group = replace(GROUP, workers=1, machines=2, link=link_of(recipe, 1, 2, megabits, 1e-3))
    found, compute = meeting_of(recipe, group), compute_of(REHEARSAL, 2)
    choice = choose(Link(megabits * 125_000, 1e-3), compute, 11_000_000, 2, recipe.parallel, GROUP.last, optimizer="adamw")
    assert (found.sync, found.codec, found.reasons) == (choice.sync, choice.codec, choice.reasons)
    assert compute.total / (compute.total + found.seconds) == pytest.approx(choice.share)


def test_of_two_passes_the_last_backward_alone_hides_what_is_sent() -> None:
    one, two = compute_of(REHEARSAL, 2), compute_of(REHEARSAL, 2, over_each=2)
    assert two.total == pytest.approx(one.total)
    assert two.backward == pytest.approx(one.backward / 2)


def test_what_the_recipe_says_holds_on_a_link() -> None:
    recipe = recipe_of(sync="every", codec={"kind": "int8"})
    group = replace(GROUP, link=Link(1e6, 1e-3))
    traffic = every_step(11_000_000, 2, "int8", recipe.parallel, GROUP.last)
    compute = compute_of(REHEARSAL, 2)
    found = meeting_of(recipe, group)
    assert (found.codec, found.bytes) == ("int8", traffic.sent)
    assert found.seconds == pytest.approx(step_seconds(compute, traffic, Link(1e6, 1e-3), 2) - compute.total)
    rarer = [meeting_of(recipe_of(sync="local", local={"every": every}), group).seconds for every in (1, 10, 100)]
    assert rarer == sorted(rarer, reverse=True)
    assert meeting_of(recipe_of(shard="zero3"), group).bytes == GROUP.sent


def test_ranks_of_a_machine_share_its_link() -> None:
    assert link_of(recipe_of(), 1, 1, 100.0, 1e-3) is None
    assert link_of(recipe_of(), 4, 2, 100.0, 1e-3) == Link(100 * 125_000 / 4, 1e-3)
    assert link_of(recipe_of(link={"megabits": 8.0}), 2, 1, 100.0, 1e-3) == Link(1e6, 0.0)
