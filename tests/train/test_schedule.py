"""Learning-rate shares and budgets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core import recipe
from shoal.core.errors import RecipeError
from shoal.data.batch_sizes import BatchSizes
from shoal.train.schedule import Budget, learning_rate_share

KINDS = ["cosine", "linear", "wsd", "constant"]


@pytest.mark.parametrize("kind", KINDS)
@given(progress=st.floats(0, 1), step=st.integers(0, 10_000), warmup=st.sampled_from([0.0, 0.05, 0.5, 1.0, 100.0]))
def test_the_share_never_leaves_zero_to_one(kind: str, progress: float, step: int, warmup: float) -> None:
    schedule = recipe.Schedule(kind=kind, warmup=warmup, final=0.0)
    assert 0 <= learning_rate_share(schedule, progress, step) <= 1


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_a_decay_ends_at_the_final_share_and_never_rises(kind: str) -> None:
    schedule = recipe.Schedule(kind=kind, warmup=0.0, final=0.1)
    shares = [learning_rate_share(schedule, progress / 100, progress) for progress in range(101)]
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(0.1)
    assert shares == sorted(shares, reverse=True)


def test_warmup_stable_decay_stays_at_the_peak_until_the_decay() -> None:
    schedule = recipe.Schedule(kind="wsd", warmup=10, decay=0.25)
    assert learning_rate_share(schedule, 0.75, 75) == 1
    assert learning_rate_share(schedule, 0.875, 87) == pytest.approx(0.55)


def test_warmup_counts_steps_from_one_up_and_a_share_of_the_run_below_one() -> None:
    in_steps = recipe.Schedule(kind="constant", warmup=10)
    assert [learning_rate_share(in_steps, 0.0, step) for step in (0, 4, 9, 20)] == pytest.approx([0.1, 0.5, 1, 1])
    in_shares = recipe.Schedule(kind="constant", warmup=0.5)
    assert [learning_rate_share(in_shares, done, 1) for done in (0.0, 0.25, 0.5)] == pytest.approx([0.1, 0.5, 1])


def test_a_run_ends_with_whichever_budget_ends_first() -> None:
    budget = Budget(steps=100, tokens=1000, seconds=10)
    assert budget.progress(50, 200, 1) == 0.5
    assert budget.progress(10, 1000, 1) == 1
    assert budget.progress(10, 100, 12) > 1
    assert budget.expected_steps(BatchSizes.constant(5), tokens=4) == 50
    assert Budget(seconds=5).expected_steps(BatchSizes.constant(5), tokens=4) is None


def test_a_recipe_without_an_end_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.steps, train\.tokens or train\.minutes"):
        Budget.of(recipe.Train())
