"""`shoal bench`, as a person types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Shoal


def test_parity_is_shown_over_real_ranks(shoal: Shoal) -> None:
    found = json.loads(shoal("bench", "parity", "--ranks", "1", "--json").out)
    assert [row["case"] for row in found["cases"]] == ["one rank", "one rank, accumulating", "muon, one rank"]
    assert all(row["same"] and row["weights"] < found["tolerance"] for row in found["cases"])


def test_a_number_of_ranks_that_has_no_cases_is_refused(shoal: Shoal) -> None:
    refused = shoal("bench", "parity", "--ranks", "3")
    assert refused.code == 2
    assert "--ranks is 3; accepted: 1, 2, 4" in refused.err


def test_a_method_that_there_is_not_is_refused(shoal: Shoal) -> None:
    refused = shoal("bench", "network", "gpt-bench", "--methods", "int2")
    assert refused.code == 2
    assert "there is no 'int2'; accepted: 'fp32'" in refused.err


def test_parameter_servers_without_ray_are_refused(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.commands.bench.find_spec", lambda name: None)
    refused = shoal("bench", "network", "gpt-bench", "--methods", "fp32", "server")
    assert refused.code == 2
    assert "'server' needs Ray: pip install" in refused.err


def test_a_file_that_holds_no_results_is_left_alone(shoal: Shoal, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"rows": 3}')
    refused = shoal("bench", "network", "gpt-bench", "--results", str(tmp_path / "other.json"))
    assert refused.code == 2
    assert "not a file of results" in refused.err
    assert (tmp_path / "other.json").read_text() == '{"rows": 3}'


def test_a_recipe_without_its_corpus_is_refused_once(shoal: Shoal, tmp_path: Path) -> None:
    missing, results = tmp_path / "nothing", tmp_path / "results.json"
    refused = shoal("bench", "network", "gpt-bench", "--data.directory", str(missing), "--results", str(results))
    assert refused.code == 2
    assert refused.err.count(f"{missing}: no corpus there") == 1
    assert not results.exists()


def test_a_recipe_of_losses_without_its_corpus_is_refused_before_anything_is_measured(shoal: Shoal, tmp_path: Path) -> None:
    missing, results = tmp_path / "nothing", tmp_path / "results.json"
    (tmp_path / "losses.yaml").write_text(f"train: {{steps: 1}}\ndata: {{directory: {missing}}}\n")
    refused = shoal("bench", "network", "--losses", str(tmp_path / "losses.yaml"), "--links", "--results", str(results))
    assert refused.code == 2
    assert f"{missing}: no corpus there" in refused.err
    assert not results.exists()


def test_what_a_rank_said_is_shown_as_it_is(shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(plan: object, raw: object, tell: Callable[[str], None]) -> list[str]:
        tell("int4: rank 1 ended: [/gloo/tcp.cc:9] [bold]lost")
        return ["int4: rank 1 ended"]

    monkeypatch.setattr("shoal.commands.bench.network.measure", measure)
    failed = shoal("bench", "network", "gpt-bench", "--results", str(tmp_path / "results.json"))
    assert failed.code == 1
    assert "[/gloo/tcp.cc:9] [bold]lost" in failed.err and "1 not measured: int4: rank 1 ended" in failed.err
