"""The learning-rate test: what it suggests from a curve, and that it really trains."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.core.errors import InputError, Interrupted, ShoalError
from shoal.train.finder import Curve, find_rate, has_diverged, lines, suggest
from tests.ranks import alone, run_ranks
from tests.train.runs import tiny_recipe


def curve_of(best: float, noise: float = 0.0) -> Curve:
    """A loss that falls from 4 to 2.5 around a tenth of `best`, and leaps up from three times `best` on."""
    shares = np.geomspace(1e-3, 1e3, 120)
    random = np.random.default_rng(3)
    fall = 4 - 1.5 / (1 + (best / 10 / shares) ** 1.5)
    losses = fall + (shares / best / 3) ** 2 + noise * random.standard_normal(len(shares))
    end = next((i for i in range(20, len(shares)) if has_diverged(losses[: i + 1].tolist())), len(shares) - 1)
    return Curve(shares[: end + 1].tolist(), losses[: end + 1].tolist())


@pytest.mark.parametrize("best", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_suggestion_lies_between_the_steepest_fall_and_the_lowest_loss(best: float, noise: float) -> None:
    found = suggest(curve_of(best, noise))
    assert found.steepest < found.share < found.lowest
    assert best / 10 < found.share < best
    assert found.diverged is not None
    assert found.diverged > found.lowest


def test_it_moves_with_the_curve() -> None:
    near, far = suggest(curve_of(0.1)), suggest(curve_of(10.0))
    assert far.share / near.share == pytest.approx(100, rel=0.2)


def test_a_loss_that_never_fell_gives_no_suggestion() -> None:
    shares = np.geomspace(1e-3, 1e3, 60).tolist()
    with pytest.raises(ShoalError, match="fell at no rate"):
        suggest(Curve(shares, [4.0] * 60))
    with pytest.raises(ShoalError, match="fell at no rate"):
        suggest(Curve(shares, np.linspace(4, 9, 60).tolist()))
    with pytest.raises(ShoalError, match="fell at no rate"):
        suggest(Curve([], []))


def test_smoothing_starts_at_the_first_loss_and_follows() -> None:
    smoothed = Curve([], [3.0] * 5 + [1.0] * 60).smoothed
    assert smoothed[:5] == pytest.approx([3.0] * 5)
    assert smoothed[-1] == pytest.approx(1.0, abs=1e-4)


def test_divergence_is_a_loss_that_has_left_for_good() -> None:
    falling = np.linspace(4, 2, 40).tolist()
    assert not has_diverged(falling)
    assert not has_diverged([*falling, 4.0])  # one batch alone
    assert has_diverged([*falling, *[4.0] * 10])
    assert has_diverged([*falling, math.nan])


def test_both_rates_of_muon_keep_their_proportion(corpus: Path) -> None:
    recipe = tiny_recipe(corpus, optimizer={"kind": "muon", "learning_rate": 0.004, "muon_learning_rate": 0.02})
    assert lines(recipe, 0.5) == {"optimizer.learning_rate": 0.002, "optimizer.muon_learning_rate": 0.01}
    assert lines(tiny_recipe(corpus), 0.5) == {"optimizer.learning_rate": 0.0015}


def find(world: Any, recipe: Any, steps: int) -> Curve:
    return find_rate(recipe, world, steps, quiet=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_real_steps_fall_then_leave_and_nothing_is_left_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    recipe = tiny_recipe(
        corpus, optimizer={"kind": optimizer, "learning_rate": 0.01}, checkpoint={"every": 5},
        evaluation={"every": 5, "patience": 1},
    )  # fmt: skip
    curve = find(alone(), recipe, 60)
    found = suggest(curve)
    assert min(curve.losses) < curve.losses[0] - 0.5
    assert 1e-3 < found.share < 100
    assert all(math.isfinite(loss) for loss in curve.losses)
    assert list(tmp_path.iterdir()) == []


def test_two_ranks_find_what_one_does(corpus: Path) -> None:
    recipe = tiny_recipe(corpus, schedule={"batch_start": 4})
    one, two = find(alone(), recipe, 30), run_ranks(2, find, recipe, 30)
    assert two[0] == two[1]
    assert two[0].losses[:15] == pytest.approx(one.losses[:15], rel=1e-4)


def test_who_interrupts_it_is_not_sent_to_a_folder_that_is_gone(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.train.finder.watch_signals", lambda: nullcontext(lambda: True))
    with pytest.raises(Interrupted, match="keeps nothing to go on from"):
        find(alone(), tiny_recipe(corpus), 30)


def test_what_it_is_not_for_is_told(corpus: Path) -> None:
    with pytest.raises(InputError, match=r"set parallel\.sync every"):
        find(alone(), tiny_recipe(corpus, parallel={"sync": "server"}), 30)
    with pytest.raises(InputError, match="--find-lr-steps is 5; accepted: a whole number from 20"):
        find(alone(), tiny_recipe(corpus), 5)
