"""A run that loses ranks goes on, and ends where it would have ended."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shoal.core.errors import InputError, Interrupted, RankError
from shoal.core.files import read_json
from shoal.core.recipe_file import build_recipe, write_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.launch import RanksLostError
from shoal.train import elastic
from shoal.train.elastic import Workers, last_step, launch_elastic
from shoal.train.telemetry import read_metrics
from tests.parallel.test_launch import ranks_of, start
from tests.ranks import alone
from tests.train.runs import run_training, tiny_recipe

STEPS = 120


def follow(process: subprocess.Popen[str], run: RunDirectory, step: int, session: int = 0) -> int:
    """Wait until a session other than `session` has told `step`; returns what names the session: it replaces the file."""
    while True:
        assert process.poll() is None, process.communicate()
        try:
            now = run.metrics.stat().st_ino
        except FileNotFoundError:
            now = session
        if now != session and last_step(run) >= step:
            return now
        time.sleep(0.02)


def kill_at(process: subprocess.Popen[str], run: RunDirectory, step: int, rank: int, session: int = 0) -> int:
    session = follow(process, run, step, session)
    os.kill(ranks_of(process)[rank], signal.SIGKILL)
    return session


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_a_run_whose_ranks_are_killed_ends_as_one_that_was_never_disturbed(
    corpus: Path, tmp_path: Path, workers: int
) -> None:
    recipe = tiny_recipe(
        corpus,
        name="killed",
        train={"steps": STEPS},
        checkpoint={"every": 10},
        parallel={"threads": 1},
        evaluation={"every": 40},
    )
    choose = random.Random(1)
    run = RunDirectory(tmp_path / "runs" / "killed")
    process = start(tmp_path, recipe, "--workers", f"1:{workers}", "--json")
    session = kill_at(process, run, choose.randint(12, 50), choose.randrange(workers))
    for left in range(workers - 1, 1, -1):
        session = follow(process, run, 1, session)
        kill_at(process, run, last_step(run) + choose.randint(12, 40), choose.randrange(left))
    output, told = process.communicate(timeout=200)
    assert process.returncode == 0, told

    lines = re.findall(
        r"^shoal: (rank \d was killed by SIGKILL at step \d+; going on with \d ranks? from step \d+)$", told, re.M
    )
    assert [re.search(r"with (\d rank)", line)[1] for line in lines] == ["2 rank", "1 rank"][3 - workers :], told
    result = json.loads(output)
    assert result["reformed"] == lines == read_json(run.result)["reformed"]
    assert lines[0] in run.report.read_text()
    assert result["world_size"] == 1

    reference, _ = run_training(alone(), recipe, tmp_path / "undisturbed")
    training, evaluations = read_metrics(run.metrics)
    assert [record["step"] for record in training] == list(range(1, STEPS + 1))
    assert [record["tokens"] for record in training] == [record["tokens"] for record in reference]
    assert [record["step"] for record in evaluations] == [40, 80, 120]
    assert [r["loss"] for r in training] == pytest.approx([r["loss"] for r in reference], rel=1e-4)
    state = read_json(run.checkpoints / f"step-{STEPS:08}" / "state.json")
    assert state["batches"]["position"] == STEPS * recipe.train.global_batch


@pytest.mark.thorough
def test_under_torchrun_restarted_ranks_go_on_by_themselves(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, name="again", train={"steps": 400}, checkpoint={"every": 10}, parallel={"threads": 1})
    run, file = RunDirectory(tmp_path / "runs" / "again"), tmp_path / "again.yaml"
    write_recipe(file, recipe)
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [*agent, "-m", "shoal", "pretrain", str(file), "--runs", str(tmp_path / "runs"), "--overwrite"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    kill_at(process, run, 45, 1)  # long after a checkpoint was begun
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert re.search(r"going on from step \d+", told)
    assert [record["step"] for record in read_metrics(run.metrics)[0]] == list(range(1, 401))


class Losses:
    """Stands for the launcher: each launch ends as the next of `ends` says, after some steps."""

    def __init__(self, run: RunDirectory, *ends: tuple[int, list[int] | Exception | None]) -> None:
        self.run, self.ends = run, list(ends)
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, size: int, words: list[str]) -> None:
        self.calls.append((size, "--resume" in words))
        step, end = self.ends.pop(0)
        self.run.metrics.write_text(json.dumps({"step": step}) + '\n{"step": 9')
        if isinstance(end, Exception):
            raise end
        if end is not None:
            raise RanksLostError(end, "rank 1 was killed by SIGKILL", "rank 1 was killed by SIGKILL. Go on")


@pytest.mark.parametrize(
    ("workers", "recipe", "ends", "calls"),
    [
        ("1:4", {}, [(5, [1]), (7, [0, 2]), (9, [0]), (9, None)], [4, 3, 1, 1]),
        ("2:3", {}, [(5, [1]), (7, [0]), (9, None)], [3, 2, 2]),
        ("3:3", {}, [(5, [0, 1, 2]), (9, None)], [3, 3]),
        ("1:4", {"parallel": {"tensor": 2}}, [(5, [1]), (7, [0]), (9, None)], [4, 2, 2]),
    ],
)
def test_there_are_as_many_ranks_as_are_left_and_never_fewer_than_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str, recipe: dict[str, Any], ends: list[Any], calls: list[int]
) -> None:
    launch = Losses(RunDirectory(tmp_path), *ends)
    monkeypatch.setattr(elastic, "launch", launch)
    told = launch_elastic(Workers.parse(workers).sizes(build_recipe(recipe)), [], launch.run, resume=False)
    assert launch.calls == [(size, False) for size in calls]
    assert len(told) == len(calls) - 1
    assert told[0].startswith("rank 1 was killed by SIGKILL at step 5; going on with")
    assert told[0].endswith("from the beginning")


@pytest.mark.parametrize("error", [InputError("wrong"), RankError("rank 0: step 3: diverged"), Interrupted("saved")])
def test_what_would_come_again_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    launch = Losses(RunDirectory(tmp_path), (3, error))
    monkeypatch.setattr(elastic, "launch", launch)
    with pytest.raises(type(error), match=str(error)):
        launch_elastic([2, 1], [], launch.run, resume=False)
    assert len(launch.calls) == 1


def test_losses_without_progress_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Losses(RunDirectory(tmp_path), (5, [1]), (5, [1]), (4, [1]), (5, [1]))
    monkeypatch.setattr(elastic, "launch", launch)
    with pytest.raises(RankError, match=r"lost 3 times in a row without a new step; at last: rank 1 was killed"):
        launch_elastic(range(9, 0, -1), [], launch.run, resume=False)
    assert [size for size, _ in launch.calls] == [9, 8, 7, 6]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_between_one_forming_and_the_next_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    launch = Losses(RunDirectory(tmp_path), (5, [1]), (9, None))
    monkeypatch.setattr(elastic, "launch", launch)
    monkeypatch.setattr(elastic, "_tell", lambda text: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="--resume goes on"):
        launch_elastic([2, 1], [], launch.run, resume=False)
    assert len(launch.calls) == 1
    assert signal.getsignal(number) is before
