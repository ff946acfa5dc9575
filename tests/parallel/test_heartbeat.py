"""A collective that is stuck names whom it waits for."""

import os
import re
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from shoal.parallel.heartbeat import Heartbeat, Sign, find_missing
from tests.parallel.test_launch import ranks_of, start, wait_for_first_step
from tests.ranks import CONTEXT, free_port
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


@pytest.mark.thorough
def test_a_stopped_rank_ends_the_run_and_is_named(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, name="stopped", train={"steps": 10**6}, parallel={"timeout": 5, "threads": 1})
    process = start(tmp_path, recipe, "--workers", "2")
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


def keep_store(port: int, ready: Event) -> None:
    store = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    ready.set()
    store.get("what nobody tells")


def test_a_store_whose_process_is_stopped_holds_nobody_up_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port, ready = free_port(), CONTEXT.Event()
    keeper = CONTEXT.Process(target=keep_store, args=(port, ready))
    keeper.start()
    try:
        assert ready.wait(60)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        heartbeat = Heartbeat(1, 2, timeout=0.2)
        heartbeat.at_step(18)
        heartbeat.arrive()
        os.kill(keeper.pid, signal.SIGSTOP)
        heartbeat.entered -= 0.2
        stalled = heartbeat.find_stall()
        heartbeat.stop()
        assert stalled is not None
        assert stalled.missing == [0]
        assert re.search(r"waited 0 s at step 18 in vain, and rank 0, which knows .* does not answer", str(stalled))
    finally:
        keeper.kill()


def test_a_collective_that_fails_before_its_time_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    store = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    heartbeat = Heartbeat(0, 1, timeout=60)
    heartbeat.arrive()
    assert heartbeat.find_stall() is None
    heartbeat.stop()
    assert store.check(["shoal/alive/0"])
