"""`shoal ledger`: the proof, or what is wrong by name, or one line that says why there is nothing to prove."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.core.errors import Interrupted
from shoal.core.files import read_json, sha256, write_json
from shoal.train.loop import train
from tests.cli.conftest import Shoal
from tests.ranks import alone
from tests.train.runs import build_parts, tiny_recipe


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sessions, 1–7 and 8–12."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    recipe = tiny_recipe(corpus, train={"steps": 12}, checkpoint={"every": 5})
    parts = build_parts(recipe, folder, alone())
    progress = parts.progress
    with pytest.raises(Interrupted):
        train(dataclasses.replace(parts, stop_requested=lambda: progress.step + 1 >= 7))
    parts.telemetry.close()
    parts = build_parts(recipe, folder, alone(), resume=True)
    train(parts)
    parts.telemetry.close()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be damaged."""
    shutil.copytree(trained, tmp_path / "tiny")
    return Path("tiny")


def change(run: Path, altered: Callable[[dict[str, Any]], None]) -> None:
    """Change the run's ledger, in its file and alike in its newest checkpoint."""
    tree = json.loads((run / "ledger.json").read_text())
    altered(tree)
    (run / "ledger.json").write_text(json.dumps(tree))
    change_state(run, lambda batches: batches.update(ledger=tree))


def change_state(run: Path, altered: Callable[[dict[str, Any]], None]) -> None:
    """Change the data's state in the newest checkpoint, which stays whole."""
    folder = max((run / "checkpoints").glob("step-*"))
    state, manifest = read_json(folder / "state.json"), read_json(folder / "manifest.json")
    altered(state["batches"])
    write_json(folder / "state.json", state)
    manifest["files"]["state.json"] = {
        "bytes": (folder / "state.json").stat().st_size, "sha256": sha256(folder / "state.json"),
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)


def test_a_whole_run_is_proved(shoal: Shoal, run: Path) -> None:
    outcome = shoal("ledger", run)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert lines[1:3] == [
        ["1", "1", "1–7", "0–55", "56", "as", "planned"],
        ["2", "1", "8–12", "56–95", "40", "as", "planned"],
    ]
    assert "step-00000012 holds the same" in outcome.out
    assert "96 samples consumed, 0 lost, 0 repeated" in outcome.out


def test_the_proof_as_json(shoal: Shoal, run: Path) -> None:
    outcome = shoal("ledger", run, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    facts = json.loads(outcome.out)
    assert {key: facts[key] for key in ("consumed", "lost", "repeated", "unproven", "faults")} == {
        "consumed": 96, "lost": 0, "repeated": 0, "unproven": 0, "faults": [],
    }  # fmt: skip
    assert [entry["session"] for entry in facts["ledger"]["entries"]] == [1, 2]


def test_faults_are_named_and_the_exit_code_is_1(shoal: Shoal, run: Path) -> None:
    change(run, lambda tree: tree["entries"].pop(0))
    outcome = shoal("ledger", run)
    assert outcome.code == 1
    assert "✗ positions 0–55 are in no entry, between the run's begin and session 2 (steps 8–12)" in outcome.out
    assert "40 samples consumed, 56 lost, 0 repeated" in outcome.out
    assert outcome.err == "shoal: error: tiny/ledger.json: 2 faults; 40 samples consumed, 56 lost, 0 repeated\n"
    outcome = shoal("ledger", run, "--json")
    assert (outcome.code, outcome.out.count("\n")) == (1, 1)
    facts = json.loads(outcome.out)
    assert (facts["lost"], len(facts["faults"])) == (56, 2)


def test_readings_that_nothing_explains_are_unproven(shoal: Shoal, run: Path) -> None:
    change(run, lambda tree: tree["entries"][1]["ranks"][0].update(digest=5))
    outcome = shoal("ledger", run)
    assert outcome.code == 1
    assert "✗ session 2, rank 0, steps 8–12: read other samples than its own" in outcome.out
    assert "not as planned" in outcome.out
    assert outcome.err.endswith("96 samples consumed, 0 lost, 0 repeated, 40 unproven\n")


def test_a_checkpoint_that_disagrees_is_told(shoal: Shoal, run: Path) -> None:
    tree = json.loads((run / "ledger.json").read_text())
    tree["entries"][0]["ranks"][0]["digest"] ^= 1
    (run / "ledger.json").write_text(json.dumps(tree))
    outcome = shoal("ledger", run)
    assert outcome.code == 1
    assert "step-00000012 (up to position 96) and ledger.json (up to 96) disagree: one of them is of" in outcome.out


def test_a_save_that_was_cut_short_is_no_fault(shoal: Shoal, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    outcome = shoal("ledger", run)
    assert outcome.code == 0
    assert "step-00000010 (up to position 80) and ledger.json (up to 96): the run is saving, or was killed" in outcome.out


def test_a_run_whose_checkpoints_are_gone_is_proved_by_its_file(shoal: Shoal, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    outcome = shoal("ledger", run)
    assert outcome.code == 0
    assert "there is no whole checkpoint to compare it with" in outcome.out
    assert "0 lost, 0 repeated" in outcome.out


def test_a_checkpoint_without_a_ledger_is_told(shoal: Shoal, run: Path) -> None:
    change_state(run, lambda batches: batches.pop("ledger"))
    outcome = shoal("ledger", run)
    assert outcome.code == 1
    assert "step-00000012 holds no ledger" in outcome.out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "tiny/ledger.json: no such file; a run writes it with every checkpoint"),
        ("", "tiny/ledger.json: not valid JSON"),
        ('{"seed": 1', "tiny/ledger.json: not valid JSON"),
        ("[]", "tiny/ledger.json: damaged, this is no ledger (all of it: "),
        ("{}", "tiny/ledger.json: damaged, this is no ledger (seed: "),
        ('{"seed": 1, "samples": 0}', "tiny/ledger.json: damaged, this is no ledger (samples: "),
    ],
)
def test_a_missing_or_damaged_ledger_is_told(shoal: Shoal, run: Path, content: str | None, told: str) -> None:
    if content is None:
        (run / "ledger.json").unlink()
    else:
        (run / "ledger.json").write_text(content)
    outcome = shoal("ledger", run)
    assert outcome.code == 2
    assert outcome.error.startswith(told)


def test_a_folder_that_is_no_run_is_told(shoal: Shoal) -> None:
    Path("folder").mkdir()
    Path("file").write_text("")
    assert shoal("ledger", "folder").error == "folder: not a run's folder (no ledger.json, no metrics.jsonl)"
    assert shoal("ledger", "nowhere").error == "nowhere: no such folder"
    assert shoal("ledger", "file").error == "file: no such folder"
    assert shoal("ledger", "folder").code == 2


def test_help_shows_an_example(shoal: Shoal) -> None:
    outcome = shoal("ledger", "--help")
    assert outcome.code == 0
    assert "shoal ledger runs/demo" in outcome.out
