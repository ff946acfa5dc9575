"""Early stopping: when it ends a run, which model it leaves, on any number of ranks."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from shoal.core.errors import InputError, Interrupted, RecipeError
from shoal.core.model_directory import read_model_directory
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.shards import Corpus
from shoal.models import hugging_face
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.train.averages import evaluated_weight
from shoal.train.checkpoint import Checkpoints, Saved
from shoal.train.loop import train
from shoal.train.material import pretraining
from shoal.train.patience import Patience, check_regular
from shoal.train.report import write_report
from shoal.train.run import finish
from shoal.train.sizes import estimate
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, tiny_recipe


@pytest.fixture(autouse=True, scope="module")
def unmeasured() -> Iterator[None]:
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        yield


def judged(patience: Patience, values: list[float]) -> list[bool]:
    return [patience.judge(step, {patience.metric: value}, lambda verdict: verdict) for step, value in enumerate(values, 1)]


def test_it_is_over_after_so_many_evaluations_in_a_row_that_are_no_better() -> None:
    patience = Patience(allowed=2)
    assert judged(patience, [3.0, 2.0, 2.5, 1.9, 1.9, 2.0]) == [True, True, False, True, False, False]
    assert patience.over and patience.best_step == 4 and patience.best == 1.9
    assert not Patience(allowed=0, since=9).over


def test_a_gain_must_be_more_than_the_least() -> None:
    patience = Patience(allowed=2, least=0.5)
    assert judged(patience, [3.0, 2.6, 2.4]) == [True, False, True]


def test_figures_that_are_no_losses_should_rise() -> None:
    patience = Patience(allowed=2, metric="eval_accuracy")
    assert judged(patience, [0.3, 0.4, 0.4, 0.1]) == [True, True, False, False]
    assert patience.over and patience.best_step == 2


def test_the_loss_on_one_corpus_of_a_mixture_should_fall() -> None:
    patience = Patience(allowed=2, metric="eval_loss/books")
    assert judged(patience, [3.0, 2.0, 2.5]) == [True, True, False]


def test_a_figure_that_is_not_finite_is_never_the_best() -> None:
    patience = Patience(allowed=2)
    assert judged(patience, [math.nan, 3.0, math.nan, math.nan]) == [False, True, False, False]
    assert patience.over and patience.best_step == 2


def test_a_figure_that_evaluations_do_not_tell_is_named_with_those_they_do() -> None:
    with pytest.raises(InputError, match=r"eval_f1.*accepted: eval_loss"):
        Patience(allowed=1, metric="eval_f1").judge(1, {"eval_loss": 1.0, "eval_targets": 3}, lambda verdict: verdict)


def test_such_a_figure_is_named_before_the_first_step(corpus: Path, tmp_path: Path) -> None:
    misspelt = tiny_recipe(corpus, evaluation={"every": 100, "patience": 1, "metric": "eval_bpp"}, regular={"ema": 0.9})
    with pytest.raises(InputError, match=r"'eval_bpp', which evaluations don't tell; accepted: eval_loss, eval_bpb"):
        build_parts(misspelt, tmp_path / "misspelt", alone())
    right = tiny_recipe(corpus, evaluation={"every": 100, "patience": 1, "metric": "eval_bpb"})
    assert build_parts(right, tmp_path / "right", alone()).patience.metric == "eval_bpb"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evaluation": {"patience": 2}}, "set 'evaluation.every'"),
        ({"regular": {"ema": 0.9}, "parallel": {"sync": "server", "server": {"mode": "stale"}}}, "'regular.ema' acts once"),
        ({"regular": {"l1": 0.1}, "parallel": {"sync": "server", "server": {"mode": "asynchronous"}}}, "'regular.l1' acts"),
        (
            {
                "regular": {"l2": 0.1, "decoupled": False},
                "optimizer": {"kind": "onebit_adam"},
                "parallel": {"codec": {"kind": "sign"}},
            },
            "gets momenta instead",
        ),
    ],
)
def test_what_cannot_be_together_is_told_before_a_start(corpus: Path, sections: Any, message: str) -> None:
    recipe = tiny_recipe(corpus, **sections)
    with pytest.raises(RecipeError, match=message):
        check_regular(recipe)
    with pytest.raises(RecipeError, match=message):
        estimate(recipe, Corpus.open(corpus).vocabulary, 2)


def recipe_of(corpus: Path, **sections: Any) -> Recipe:
    """No evaluation is better by so much as is asked for, so the first is the best: of step 2, and the end is step 6."""
    evaluation = {"every": 2, "patience": 2, "min_improvement": 9.0, **sections.pop("evaluation", {})}
    return tiny_recipe(corpus, evaluation=evaluation, checkpoint={"keep": 1}, **sections)


def session(world: World, recipe: Recipe, folder: Path, stop_at: int = 0, resume: bool = False) -> dict[str, Any]:
    """Train, and write; what the run was."""
    torch.set_num_threads(1)
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        parts = build_parts(recipe, folder, world, resume=resume)
    if stop_at:
        steps = parts.progress
        parts = dataclasses.replace(parts, stop_requested=lambda: steps.step + 1 >= stop_at)
    try:
        evaluated = train(parts)
        if world.is_main:
            finish(parts, pretraining(parts.recipe, parts.sync.wire.world), RunDirectory(folder), 1.0, evaluated, [1])
        evaluated.pop("eval_seconds")
        return {"step": parts.progress.step, "patience": parts.patience.state_dict(), **evaluated}
    except Interrupted:
        return {"step": parts.progress.step}
    finally:
        parts.telemetry.close()


def saved_at(folder: Path, step: int) -> Saved:
    return Saved.open(Checkpoints(RunDirectory(folder).checkpoints).at(step))


def assert_the_best_is_written(folder: Path) -> None:
    config, weights = read_model_directory(folder / "model")
    model, saved = hugging_face.build(config, weights), saved_at(folder, 2)
    for name, value in model.named_parameters():
        assert torch.equal(value, evaluated_weight(saved, name)), name


def test_a_run_that_gets_no_better_ends_and_its_best_model_is_kept_written_and_told(corpus: Path, tmp_path: Path) -> None:
    found = session(alone(), recipe_of(corpus), tmp_path)
    assert found["step"] == 6
    evaluations = read_metrics(RunDirectory(tmp_path).metrics)[1]
    assert [line["step"] for line in evaluations] == [2, 4, 6, 6]
    assert evaluations[3]["eval_loss"] == found["eval_loss"] == evaluations[0]["eval_loss"] != evaluations[2]["eval_loss"]
    folder = RunDirectory(tmp_path).checkpoints
    assert {path.name for path in folder.glob("step-*")} == {"step-00000002", "step-00000006"}
    assert [(folder / name).read_text() for name in ("best", "latest")] == ["step-00000002\n", "step-00000006\n"]
    assert_the_best_is_written(tmp_path)


def test_the_result_and_the_page_say_so(corpus: Path, tmp_path: Path) -> None:
    session(alone(), recipe_of(corpus), tmp_path)
    from shoal.core.files import read_json
    from shoal.core.recipe_file import write_recipe

    run = RunDirectory(tmp_path)
    result = read_json(run.result)
    assert result["stopped_early"] and result["best"]["best_step"] == 2 and result["steps"] == 6
    assert result["best"]["best"] == result["eval_loss"]
    assert "the best, of step 2" in (run.model / "README.md").read_text()
    write_recipe(run.recipe, recipe_of(corpus))
    write_report(run, [])
    page = run.report.read_text()
    assert "stopped early" in page and "at step 2" in page


def test_a_run_that_only_gets_better_writes_its_last_model(corpus: Path, tmp_path: Path) -> None:
    found = session(alone(), recipe_of(corpus, evaluation={"min_improvement": 0.0}), tmp_path)
    assert found["step"] == found["patience"]["best_step"] == 20


def test_the_last_step_is_evaluated_once_where_it_is_the_best_and_evaluations_are_alike(
    corpus: Path, tmp_path: Path
) -> None:
    for name, evaluation, expected in (
        ("alike", {}, [18, 20]),
        ("the last reads more", {"sequences": 4}, [18, 20, 20]),
    ):
        session(alone(), recipe_of(corpus, evaluation={"min_improvement": 0.0, **evaluation}), tmp_path / name)
        evaluations = read_metrics(RunDirectory(tmp_path / name).metrics)[1]
        assert [line["step"] for line in evaluations][8:] == expected


def test_a_resumed_run_ends_where_one_that_never_stopped_does(corpus: Path, tmp_path: Path) -> None:
    whole = session(alone(), recipe_of(corpus), tmp_path / "whole")
    for stop_at in (3, 4):
        session(alone(), recipe_of(corpus), tmp_path / "stopped", stop_at, resume=stop_at > 3)
    assert session(alone(), recipe_of(corpus), tmp_path / "stopped", resume=True) == whole
    assert_the_best_is_written(tmp_path / "stopped")


def test_a_run_that_was_over_stays_over(corpus: Path, tmp_path: Path) -> None:
    whole = session(alone(), recipe_of(corpus), tmp_path)
    assert session(alone(), recipe_of(corpus), tmp_path, resume=True) == whole
    more = recipe_of(corpus, evaluation={"patience": 4})
    assert session(alone(), more, tmp_path, resume=True)["step"] == 10  # but for who has more patience


WAYS: dict[str, dict[str, Any]] = {
    "zero1": {"shard": "zero1"},
    "zero3": {"shard": "zero3"},
    "tensor": {"tensor": 2},
    "local": {"sync": "local", "local": {"every": 3, "outer": "nesterov"}},
}


def live(world: World, corpus: Path, folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """All ways: the run, and one that was stopped in between."""
    found = {}
    for name, parallel in WAYS.items():
        ema = {"regular": {"ema": 0.0 if name == "local" else 0.8}}
        recipe, again = recipe_of(corpus, parallel=parallel, **ema), folder / f"{name}, again"
        whole = session(world, recipe, folder / name)
        Wire(world).gather_objects(None)
        session(world, recipe, again, 3)
        Wire(world).gather_objects(None)
        found[name] = whole, session(world, recipe, again, resume=True)
        Wire(world).gather_objects(None)
    return found


@pytest.fixture(scope="module")
def lives(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("lives")
    return folder, run_ranks(2, live, corpus, folder)


@pytest.mark.parametrize("name", WAYS)
def test_all_ranks_end_at_one_step_with_the_best_weights(corpus: Path, lives: Any, name: str) -> None:
    folder, by_rank = lives
    first, second = (of_rank[name] for of_rank in by_rank)
    assert first == second
    evaluations = read_metrics(RunDirectory(folder / name).metrics)[1]
    assert first[0]["step"] == 6 and first[0]["eval_loss"] == evaluations[0]["eval_loss"] == evaluations[-1]["eval_loss"]
    assert_the_best_is_written(folder / name)


@pytest.mark.parametrize("name", WAYS)
def test_ranks_that_go_on_end_as_if_never_stopped(lives: Any, name: str) -> None:
    whole, again = lives[1][0][name]
    if name == "local":  # copies hear of a stop at a meeting, one later
        assert again["step"] == whole["step"]
    else:
        assert whole == again
