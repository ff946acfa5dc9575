"""`shoal board`: it listens on this machine alone, or says in a line why it can't."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from shoal.core.figures import PLOTS
from shoal.core.files import read_json
from tests.board.runs import step, write_run
from tests.cli.conftest import Shoal

pytest.importorskip("fastapi", reason="the board needs the extra `serve`")

from shoal.board.board import Board


def test_a_folder_that_is_none_is_refused(shoal: Shoal) -> None:
    outcome = shoal("board")
    assert outcome.code == 2
    assert outcome.error == "runs: no such folder; give folders of runs"


def test_a_port_in_use_is_refused_and_another_advised(shoal: Shoal, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = shoal("board", tmp_path, "--port", port)
    assert outcome.code == 2
    assert outcome.error == f"--port {port}: something listens there already, perhaps another board; choose another, or 0"


@pytest.mark.parametrize("port", [-1, 65536, 10**12])
def test_a_port_that_cannot_be_is_refused(shoal: Shoal, tmp_path: Path, port: int) -> None:
    outcome = shoal("board", tmp_path, "--port", port)
    assert outcome.code == 2
    assert outcome.error == f"--port is {port}; accepted: 0 to 65535"


def test_without_its_libraries_it_says_how_to_get_them(
    shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    outcome = shoal("board", tmp_path)
    assert outcome.code == 2
    assert outcome.error.startswith("this needs uvicorn: pip install 'shoal[serve]'")


@pytest.mark.thorough
def test_it_answers_until_it_is_interrupted(tmp_path: Path) -> None:
    write_run(tmp_path / "one", [step(1)])
    command = [sys.executable, "-m", "shoal", "board", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as board:
        assert board.stdout is not None and board.stderr is not None
        told = json.loads(board.stdout.readline())
        assert told["runs"] == 1
        with urllib.request.urlopen(told["address"]) as answer:
            assert b"<title>Runs" in answer.read()
        board.send_signal(signal.SIGINT)
        assert board.stdout.read() == ""
        assert board.stderr.read() == ""
    assert board.returncode == 0


@pytest.mark.thorough
def test_a_real_run_is_shown_with_all_that_it_has_told(shoal: Shoal, corpus: Path) -> None:
    shape = [
        "--model.preset",
        "llama-tiny",
        "--model.layers=1",
        "--model.dim",
        "32",
        "--model.heads",
        "2",
        "--model.context",
        "16",
    ]
    words = ["--data.directory", corpus, *shape, "--train.steps", "5", "--train.compile", "off", "--samples.tokens", "4"]
    outcome = shoal("pretrain", *words, "--samples.prompts", "the sea", "--json", "--quiet")
    assert json.loads(outcome.out) == read_json(Path("runs/run/result.json"))
    board = Board([Path("runs")])
    (run,) = board.news({})["runs"]
    assert (run["name"], run["state"], run["step"], run["done"]) == ("run", "finished", 5, 1.0)
    described = board.describe(run["id"])
    assert described["samples"][0]["prompt"] == "the sea"
    assert described["recipe"]["train.steps"] == 5
    news = board.news({run["id"]: None})["news"][run["id"]]
    keys = news["training"]["keys"].keys() | news["evaluations"]["keys"].keys()
    assert {line.key for plot in PLOTS for line in plot.lines} <= keys
