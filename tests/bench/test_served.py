"""Parameter servers on a bench's hosts: Ray on each, workers and servers apart, and nothing left behind."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from shoal.bench.hosts import hosts, reason_against
from shoal.bench.losses import Plan, measure
from shoal.bench.places import Here, RanksFailed, Running, wait_for
from shoal.bench.raw import Raw
from shoal.bench.served import _wait_joined, run_served
from shoal.core.files import read_json
from tests.bench.test_losses import RECIPE
from tests.threads import one_thread  # noqa: F401 (a fixture)

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'shoal[cluster]'")
against = reason_against()


def test_a_node_that_ends_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.bench.served.JOINED", "import time; time.sleep(600)")
    words = [sys.executable, "-c", "import sys; sys.exit('no such port')"]
    with Running(Here(), None, words, {}) as node, pytest.raises(RanksFailed, match=r"place 0: ended .*\nno such port$"):
        _wait_joined(Here(), "127.0.0.1:1", [node])


def test_a_wait_has_an_end() -> None:
    with (
        Running(Here(), 0, [sys.executable, "-c", "import time; time.sleep(600)"], {}) as one,
        pytest.raises(RanksFailed, match=r"not done in 0\.1 seconds"),
    ):
        wait_for([one], longest=0.1)


@with_ray
@pytest.mark.skipif(against is not None, reason=str(against))
def test_a_worker_a_host_and_what_it_sends_crosses_their_links(corpus: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(corpus=corpus).replace("dim: 32", "dim: 256"))  # what Ray itself says is less
    steps = 20
    words = ["-m", "shoal", "pretrain", str(recipe), "--quiet", "--runs", str(tmp_path), "--train.steps", str(steps)]
    words += ["--parallel.sync", "server", "--parallel.server.shards", "2", "--train.device", "cpu"]
    with hosts(2) as where:
        before = [host.bytes_sent() for host in where]
        run_served(where, words)
        sent = [host.bytes_sent() - start for host, start in zip(where, before, strict=True)]
        left = [subprocess.check_output(["ip", "netns", "pids", host.name], text=True) for host in where]
    weights = 4 * read_json(tmp_path / "tiny" / "result.json")["parameters"]
    # each pushes half of its gradients to the other's server, from which the other pulls half of the weights
    assert all(0.9 * steps * weights < its < 1.5 * steps * weights + 4e6 for its in sent), (sent, weights)
    assert left == ["", ""]  # of Ray's processes


@with_ray
def test_a_model_is_trained_to_the_end_through_servers(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.bench.losses.TOKENS_PER_PARAMETER", 1)
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(corpus=corpus))
    raw = Raw(tmp_path / "raw.json")
    measure(Plan(tmp_path / "tiny.yaml", methods=("fp32", "server")), raw, print)
    plain, served = raw.rows
    assert served["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-5)
