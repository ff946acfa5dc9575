"""Ranks that are started together end together, and the one that failed is named once."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.core.files import read_json
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import write_recipe
from shoal.core.run_directory import RunDirectory
from shoal.train.telemetry import read_metrics
from tests.ranks import free_port
from tests.train.runs import tiny_recipe


def start(folder: Path, recipe: Recipe, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    file = folder / f"{recipe.name}.yaml"
    write_recipe(file, recipe)
    command = [sys.executable, "-m", "shoal", "pretrain", str(file), "--runs", str(folder / "runs"), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    )


def wait_for_first_step(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step 1 "):
            return
    pytest.fail("training did not begin:\n" + "".join(seen))


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    by_rank = {}
    for child in map(int, children):
        found = re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
        if found:
            by_rank[int(found[1])] = child
    return [by_rank[rank] for rank in sorted(by_rank)]


@pytest.fixture
def endless(corpus: Path) -> Recipe:
    return tiny_recipe(corpus, train={"steps": 1_000_000}, name="endless")


def test_a_killed_rank_ends_the_run_with_its_name_and_no_traceback(tmp_path: Path, endless: Recipe) -> None:
    process = start(tmp_path, endless, "--workers", "2")
    wait_for_first_step(process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    began = time.monotonic()
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 1
    assert told.count("shoal: error:") == 1
    assert "rank 1 was killed by SIGKILL" in told
    assert "--resume" in told
    assert "Traceback" not in told


def test_an_error_on_a_rank_is_told_once(tmp_path: Path, corpus: Path) -> None:
    process = start(tmp_path, tiny_recipe(corpus, optimizer={"learning_rate": 1e30}), "--workers", "2")
    output, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output == ""
    assert told.count("diverged") == 1
    assert re.search(r"^shoal: error: rank \d: step \d+: loss", told, re.MULTILINE)
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("workers", "number"), [(1, signal.SIGINT), pytest.param(2, signal.SIGTERM, marks=pytest.mark.thorough)]
)
def test_an_interrupted_run_saves_says_so_and_goes_on_bitwise(
    tmp_path: Path, corpus: Path, workers: int, number: signal.Signals
) -> None:
    steps = 90
    recipe, straight = (
        tiny_recipe(corpus, train={"steps": steps}, name=name, parallel={"threads": 1}) for name in ("stopped", "straight")
    )
    count = ("--workers", str(workers))
    process = start(tmp_path, recipe, *count)
    wait_for_first_step(process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert re.search(r"saved at step \d+.*--resume", told)
    assert "Traceback" not in told
    for case, words in ((recipe, (*count, "--resume", "--json")), (straight, (*count, "--json"))):
        process = start(tmp_path, case, *words)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    runs = [RunDirectory(tmp_path / "runs" / name) for name in ("stopped", "straight")]
    losses = [[record["loss"] for record in read_metrics(run.metrics)[0]] for run in runs]
    assert len(losses[0]) == steps
    assert losses[0] == losses[1]
    assert (runs[0].model / "model.safetensors").read_bytes() == (runs[1].model / "model.safetensors").read_bytes()
    assert read_json(runs[0].result)["eval_loss"] == read_json(runs[1].result)["eval_loss"]


def test_processes_of_another_launcher_join_by_rank_and_world_size(tmp_path: Path, corpus: Path) -> None:
    recipe = tiny_recipe(corpus, train={"steps": 3}, name="joined")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        start(tmp_path, recipe, "--json", environment=meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert '"world_size": 2' in results[0][0]
    assert results[1][0] == ""


@pytest.mark.thorough
def test_a_run_that_is_there_is_neither_mixed_nor_overwritten_unasked(tmp_path: Path, corpus: Path) -> None:
    recipe = tiny_recipe(corpus, train={"steps": 2}, name="twice")
    codes, messages = [], []
    for words in ((), (), ("--overwrite",)):
        process = start(tmp_path, recipe, "--quiet", *words)
        messages.append(process.communicate(timeout=120)[1])
        codes.append(process.returncode)
    assert codes == [0, 2, 0]
    assert "--resume" in messages[1]
    assert "--overwrite" in messages[1]
    assert len(read_metrics(RunDirectory(tmp_path / "runs" / "twice").metrics)[0]) == 2
