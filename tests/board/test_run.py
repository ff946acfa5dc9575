"""What a run is doing, by nothing but its files."""

from pathlib import Path
from typing import Any

import pytest

from shoal.board.run import Run
from tests.board.runs import Records, evaluation, step, text_of, write_run

STEPS = [step(number) for number in range(1, 41)]
LONG = 10_000.0


def seen(folder: Path, silent: float = 0.0) -> dict[str, Any]:
    """The run's summary, so many seconds after its last line."""
    run = Run(folder, folder.name)
    run.look()
    return run.summary((folder / "metrics.jsonl").stat().st_mtime + silent)


@pytest.mark.parametrize(
    ("state", "silent", "settings"),
    [
        ("running", 0.0, {}),
        ("running", 100.0, {"saved": 10}),
        ("finished", LONG, {"result": {"steps": 40}}),
        ("finished", 0.0, {"result": {"steps": 40}}),
        ("running", 0.0, {"result": {"steps": 30}}),  # it goes on, further than before
        ("stopped", LONG, {"saved": 40}),
        ("failed", LONG, {"saved": 20}),
        ("failed", LONG, {}),
    ],
)
def test_the_state_is_told_by_result_checkpoint_and_silence(
    tmp_path: Path, state: str, silent: float, settings: dict[str, Any]
) -> None:
    told = seen(write_run(tmp_path / "run", STEPS, **settings), silent)
    assert told["state"] == state
    assert told["why"]


def test_a_run_without_a_line_is_starting_and_one_whose_loss_is_none_has_failed(tmp_path: Path) -> None:
    assert seen(write_run(tmp_path / "new", []))["state"] == "starting"
    diverged = seen(write_run(tmp_path / "diverged", [*STEPS, step(41, loss=float("nan"))], saved=41), LONG)
    assert (diverged["state"], diverged["loss"]) == ("failed", None)
    assert "not a finite number" in diverged["why"]


def test_a_run_of_slow_steps_or_long_evaluations_may_be_silent_for_longer(tmp_path: Path) -> None:
    assert seen(write_run(tmp_path / "steps", [step(1, step_seconds=60.0)]), 600.0)["state"] == "running"
    assert (
        seen(write_run(tmp_path / "evaluations", [*STEPS, evaluation(40, eval_seconds=300.0)]), 600.0)["state"] == "running"
    )


@pytest.mark.parametrize(
    ("train", "done", "left"),
    [
        ({"steps": 100}, 0.4, 6.0),
        ({"tokens": 64 * 80}, 0.5, 4.0),
        ({"minutes": 8 / 60}, 0.5, 4.0),
        ({"steps": 1000, "tokens": 64 * 80}, 0.5, 4.0),
        ({"epochs": 0.8, "global_batch": 4}, 0.5, 4.0),
        ({}, 0.0, None),
    ],
)
def test_time_left_follows_from_whichever_budget_ends_first(
    tmp_path: Path, train: dict[str, Any], done: float, left: float | None
) -> None:
    told = seen(write_run(tmp_path / "run", STEPS, recipe={"train": train}, saved=10))
    assert told["done"] == pytest.approx(done)
    assert told["seconds_left"] == (left if left is None else pytest.approx(left, rel=0.01))


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("eval_loss", {"figure": "eval_loss", "value": 1.2, "step": 20}),
        ("eval_accuracy", {"figure": "eval_accuracy", "value": 0.9, "step": 30}),
        ("no_such", {"figure": "eval_loss", "value": 1.2, "step": 20}),
    ],
)
def test_the_best_evaluation_is_by_the_figure_that_the_recipe_goes_by(
    tmp_path: Path, metric: str, best: dict[str, Any]
) -> None:
    figures = {10: (1.5, 0.5), 20: (1.2, 0.8), 30: (1.3, 0.9), 40: (1.3, 0.9)}
    records: Records = [evaluation(number, eval_loss=loss, eval_accuracy=right) for number, (loss, right) in figures.items()]
    told = seen(write_run(tmp_path / "run", [*STEPS, *records], recipe={"evaluation": {"metric": metric}}))
    assert told["best"] == best


def test_lines_that_are_no_records_are_counted_and_the_others_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", STEPS)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff{not json\n[1]\n" + text_of([step(41)]).encode() + b'{"half')
    told = seen(folder)
    assert (told["broken_lines"], told["step"]) == (2, 41)


def test_a_run_that_begins_anew_is_another(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [*STEPS, evaluation(40)])
    run = Run(folder, "run")
    run.look()
    (folder / "new").write_text(text_of([step(1)]))
    (folder / "new").rename(folder / "metrics.jsonl")
    run.look()
    past = run.past
    assert (run.generation, past.step, past.training.count, past.evaluations.count, past.lowest) == (1, 1, 1, 0, {})


@pytest.mark.parametrize(
    ("task", "ranks", "words"),
    [
        ("causal", 1, "pretrain {}/recipe.yaml --resume --runs {}"),
        ("classify", 2, "finetune {}/recipe.yaml --resume --workers 2 --runs {}"),
    ],
)
def test_the_command_to_go_on_is_whole(tmp_path: Path, task: str, ranks: int, words: str) -> None:
    folder = write_run(tmp_path / "run", STEPS, recipe={"task": task}, saved=40, ranks=ranks)
    assert Run(folder, "run").facts.resume() == "shoal " + words.format(folder, tmp_path)


def test_the_command_to_go_on_is_none_without_a_checkpoint_and_quotes_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run(write_run(Path("runs/none"), STEPS), "none").facts.resume() == ""
    spaced = write_run(Path("runs/a $(b)"), STEPS, saved=40)
    assert Run(spaced, "a").facts.resume() == "shoal pretrain 'runs/a $(b)/recipe.yaml' --resume"


@pytest.mark.parametrize(
    "recipe",
    [
        b"\xff\xfe",
        b"a: [1",
        b"- 1\n- 2",
        b"a: &a [*a]",
        b"x: !!python/object:os.system {}",
        b"[" * 5000,
        b"a: 1\n" + b"#" * (5 << 20),
    ],
    ids=["no text", "cut off", "a list", "part of itself", "python", "nested", "enormous"],
)
def test_a_recipe_that_cannot_be_read_is_told_and_the_run_is_shown(tmp_path: Path, recipe: bytes) -> None:
    folder = write_run(tmp_path / "run", STEPS)
    (folder / "recipe.yaml").write_bytes(recipe)
    told = seen(folder)
    assert told["step"] == 40
    assert [fault.startswith("recipe.yaml can't be read") for fault in told["faults"]] == [True]


def test_a_recipe_that_refers_to_itself_a_billion_times_is_cut(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", STEPS)
    rows = "\n".join(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 12))
    (folder / "recipe.yaml").write_text(f"a0: &a0 [lol]\n{rows}\n")
    recipe = Run(folder, "run").facts.recipe.get()
    assert len(str(recipe)) < 100_000
