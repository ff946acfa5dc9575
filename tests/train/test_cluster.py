"""Parameter servers on a real Ray of this machine: what only processes can show."""

import json
import os
import signal
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from shoal.core.files import remove_folder
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.train.cluster import train_on_servers
from shoal.train.finetune import finetuning
from shoal.train.run import Session
from shoal.train.telemetry import read_metrics
from tests.ranks import alone
from tests.train.labelled import finetune, labelled_recipe, losses_in, write_encoder, write_texts
from tests.train.runs import run_training, tiny_recipe

# looked for, not imported: what keeps Ray quiet must be set before
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'shoal[cluster]'")


def served(corpus: Path, steps: int, **server: Any) -> Recipe:
    return tiny_recipe(
        corpus,
        train={"steps": steps},
        checkpoint={"every": 5},
        parallel={"sync": "server", "threads": 1, "server": {"shards": 2, "restarts": 0} | server},
    )


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(RunDirectory(folder).metrics)[0]]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    train_on_servers(served(corpus, 20), Session(RunDirectory(folder), quiet=True), 2)
    return folder


def test_two_workers_train_as_one_rank_does(corpus: Path, trained: Path, tmp_path: Path) -> None:
    plain, _ = run_training(alone(), tiny_recipe(corpus), tmp_path)
    assert losses(trained) == pytest.approx([record["loss"] for record in plain], rel=1e-5)
    assert (RunDirectory(trained).model / "model.safetensors").exists()


def test_resumed_servers_go_on_bitwise(corpus: Path, trained: Path) -> None:
    before = losses(trained)
    remove_folder(RunDirectory(trained).checkpoints / "step-00000020")
    train_on_servers(served(corpus, 20), Session(RunDirectory(trained), resume=True, quiet=True), 2)
    assert losses(trained) == before


def test_two_workers_fine_tune_as_one_rank_does(corpus: Path, tmp_path: Path) -> None:
    encoder, data = write_encoder(tmp_path / "encoder", corpus), write_texts(tmp_path / "texts.tsv", 120)
    finetune(alone(), labelled_recipe(encoder, data, evaluation={"patience": 2}), tmp_path / "alone")
    run = RunDirectory(tmp_path / "served")
    run.root.mkdir()
    parallel = {"sync": "server", "threads": 1, "server": {"shards": 2}}
    recipe = labelled_recipe(encoder, data, evaluation={"patience": 2}, parallel=parallel)
    result = train_on_servers(recipe, Session(run, quiet=True), 2, partial(finetuning, run=run))
    assert losses_in(run.root) == pytest.approx(losses_in(tmp_path / "alone"), rel=1e-5)
    assert result["eval_accuracy"] == json.loads(run.result.read_text())["eval_accuracy"] > 0.5
    assert (run.model / "model.safetensors").exists()


def test_a_killed_worker_drops_out_and_the_rest_finish(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOAL_TEST", str(tmp_path))  # by which its processes are known from those of other tests
    run = RunDirectory(tmp_path / "run")
    run.root.mkdir()

    def kill() -> None:
        while not run.metrics.exists() or len(run.metrics.read_text().splitlines()) < 5:
            time.sleep(0.02)
        (worker,) = processes("ray::RemoteWorker", str(tmp_path))
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = train_on_servers(served(corpus, 300, lease=2.0), Session(run), 2)
    killer.join()
    tokens = [record["tokens"] for record in read_metrics(run.metrics)[0]]
    assert len(tokens) == result["steps"] == 300
    assert (tokens[0], tokens[-1] - tokens[-2]) == (8 * 16, 4 * 16)
    told = capfd.readouterr()
    assert "rank 1 gave no sign for 2 s" in told.err
    assert told.out == ""
    assert processes("ray", str(tmp_path)) == []


def processes(title: str, mark: str) -> list[int]:
    """Processes that Ray has titled so, and that inherited the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(title.encode()) and mark.encode() in (
                folder / "environ"
            ).read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
