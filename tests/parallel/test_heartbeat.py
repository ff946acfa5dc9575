"""A collective that is stuck names whom it waits for."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from shoal.core.run_directory import RunDirectory
from shoal.parallel.heartbeat import Sign, find_missing
from tests.parallel.test_launch import ranks_of, start, wait_for_first_step
from tests.ranks import free_port
from tests.train.runs import tiny_recipe

NOW = 1000.0


def sign(collectives: int, age: float = 0.5, leaving: bool = False) -> Sign:
    return Sign(step=7, collectives=collectives, entered=NOW - 9, told=NOW - age, leaving=leaving)


@pytest.mark.parametrize(
    ("signs", "missing"),
    [
        ({0: sign(30), 1: sign(29), 2: sign(30)}, [1]),  # alive, but late
        ({0: sign(30), 1: sign(30, age=8), 2: sign(30)}, [1]),  # stopped in the middle of it
        ({0: sign(30), 1: sign(29, age=8), 2: sign(29)}, [1]),  # 2 waits for 1 too, one collective before
        ({0: sign(30), 1: sign(28), 2: sign(29)}, [1, 2]),
        ({0: sign(30), 1: sign(29, leaving=True), 2: sign(30)}, []),  # 1 has given up waiting itself
        ({0: sign(30), 1: sign(30), 2: sign(30)}, []),
    ],
)
def test_missing_is_who_is_silent_or_behind(signs: dict[int, Sign], missing: list[int]) -> None:
    assert find_missing(signs, 0, 30, NOW, limit=2.5) == missing


def test_a_stopped_rank_ends_the_run_and_is_named(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, name="stopped", train={"steps": 10**6}, parallel={"timeout": 5, "threads": 1})
    process = start(tmp_path, recipe, "--workers", "3")
    wait_for_first_step(process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGSTOP)
    began = time.monotonic()
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began < 25
    assert process.returncode == 1
    assert re.search(
        r"^shoal: error: rank \d: waited \d+ s \(parallel\.timeout\) in vain: rank 1 has not arrived at step \d+ "
        r"\(it was last seen at step \d+, \d+ s ago; silent since: .*--resume",
        told,
        re.MULTILINE,
    ), told
    assert told.count("has not arrived") == 1
    assert "Traceback" not in told
    assert not Path(f"/proc/{ranks[1]}").exists()


def test_without_a_launcher_every_waiting_rank_tells_it_even_when_the_main_one_is_stopped(
    corpus: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(corpus, name="main", train={"steps": 10**6}, parallel={"timeout": 5, "threads": 1})
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    places = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    processes = [start(tmp_path, recipe, environment=place) for place in places]
    wait_for_first_step(processes[0])
    processes[0].send_signal(signal.SIGSTOP)
    _, told = processes[1].communicate(timeout=60)
    processes[0].kill()
    processes[0].communicate()
    assert processes[1].returncode == 1
    assert re.search(
        r"^shoal: error: waited \d s at step \d+ in vain, and rank 0, which knows .* does not answer", told, re.M
    ), told
    assert "Traceback" not in told
    assert RunDirectory(tmp_path / "runs" / "main").metrics.exists()
