"""What is said of learning curves: each case on curves that are clearly of it."""

import pytest

from shoal.core.recipe_file import build_recipe
from shoal.train.overfitting import Curves, unlike

STEPS = [10, 20, 30]


@pytest.mark.parametrize(
    ("training", "held_out", "said"),
    [
        ([0.6, 0.3, 0.05], [0.5, 0.4, 0.6], "It overfits: the held-out loss was lowest at step 20 (0.400)"),
        ([0.6, 0.3, 0.2], [0.5, 0.4, 0.4], "It begins to overfit"),
        ([0.6, 0.5, 0.4], [0.6, 0.5, 0.4], "It does not overfit, and is still learning"),
        ([0.6, 0.5, 0.4], [0.45, 0.41, 0.41], "It does not overfit (training loss 0.400, held out 0.410)"),
    ],
)
def test_the_verdict_is_that_of_the_curves(training: list[float], held_out: list[float], said: str) -> None:
    assert Curves(STEPS, training, held_out).verdict().startswith(said)


def test_curves_are_means_between_evaluations() -> None:
    training = [{"step": step, "loss": float(step)} for step in range(1, 6)]
    evaluations = [{"step": 2, "eval_loss": 9.0}, {"step": 5, "eval_loss": 8.0}, {"step": 5, "eval_loss": 7.0}]
    assert Curves.of(training, evaluations) == Curves([2, 5], [1.5, 4.0], [9.0, 8.0])


def test_held_out_losses_are_by_the_measure_that_training_minimises() -> None:
    training = [{"step": step, "loss": 0.1} for step in (1, 2)]
    evaluations = [{"step": step, "eval_loss": 0.5, "eval_minimised_loss": 0.1} for step in (1, 2)]
    assert Curves.of(training, evaluations).held_out == [0.1, 0.1]
    assert Curves.of(training, evaluations).verdict().startswith("It does not overfit (training loss 0.100, held out 0.100)")


@pytest.mark.parametrize(
    ("held_out", "said"),
    [([0.5, 0.4, 0.6], "It overfits"), ([0.6, 0.5, 0.4], "It does not overfit, and is"), ([0.5, 0.4, 0.4], "It does not")],
)
def test_where_no_measure_is_common_the_held_out_curve_alone_decides(held_out: list[float], said: str) -> None:
    recipe = build_recipe({"task": "translate", "regular": {"label_smoothing": 0.1}})
    verdict = Curves(STEPS, [0.1, 0.1, 0.1], held_out, unlike(recipe)).verdict()
    assert verdict.startswith(said) and "the training loss is softened (regular.label_smoothing) and does not" in verdict
    assert "went on falling" not in verdict
    for task in ("classify", "tag"):  # of which one tells the softened loss, and the other softens none
        assert unlike(build_recipe({"task": task, "regular": {"label_smoothing": 0.1}})) == ""
    assert "augment.mixup" in unlike(build_recipe({"task": "classify", "augment": {"mixup": 0.2}}))


def test_one_evaluation_says_nothing() -> None:
    assert Curves([1], [1.0], [1.0]).verdict() == ""
