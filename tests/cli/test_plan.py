"""`shoal plan`, as it is typed."""

import json
import re
import shutil
from pathlib import Path

import pytest

from shoal.core.errors import InputError
from shoal.core.recipe import Recipe
from shoal.plan import rehearsal
from shoal.plan.rehearsal import Extent, Rehearsal, run_shoal
from tests.cli.conftest import Shoal
from tests.plan.test_forecast import REHEARSAL

TINY = ["--model.preset", "qwen3-tiny", "--model.layers=2", "--model.dim", "32", "--model.heads", "2"]
TINY += ["--model.hidden", "64", "--model.context", "16", "--train.compile", "off", "--train.device", "cpu"]


KEPT: list[Rehearsal] = []


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real rehearsal, as short as can be, and one for all tests: two ranks need ten seconds to start and to end."""

    def once(recipe: Recipe, workers: int, extent: Extent) -> Rehearsal:
        if not KEPT:
            KEPT.append(rehearsal.rehearse(recipe, 2, extent))
        return KEPT[0]

    monkeypatch.setattr(rehearsal, "MOST", rehearsal.FEWEST)
    monkeypatch.setattr("shoal.commands.plan.rehearse", once)


def test_a_rehearsal_foretells_a_run_and_leaves_nothing(shoal: Shoal, corpus: Path, tmp_path: Path, rehearsed: None) -> None:
    words = ["plan", "--data.directory", corpus, *TINY, "--train.steps", "40", "--train.micro_batch", "2"]
    outcome = shoal(*words, "--evaluation.every", "20", "--workers", "2", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    told = facts["forecast"]
    assert (facts["fits"], facts["world_size"], told["steps"]) == (True, 2, 40)
    assert told["tokens"] == 40 * 16 * 16
    assert 0.2e9 < facts["memory_bytes"] < 1e9
    assert facts["memory_bytes"] == told["memory_bytes"]
    assert 0 < told["step_seconds"] < told["training_seconds"] < told["total_seconds"]
    assert told["tokens_per_second"] == pytest.approx(16 * 16 / told["step_seconds"])
    assert told["disk_bytes"] > 12 * facts["parameters"]
    assert told["wire_bytes"] >= 4 * facts["parameters"]
    assert list(tmp_path.iterdir()) == []


def test_more_machines_and_a_slow_link_change_how_ranks_meet(shoal: Shoal, corpus: Path, rehearsed: None) -> None:
    words = ["plan", "--data.directory", corpus, *TINY, "--train.steps", "40"]
    outcome = shoal(*words, "--machines", "2", "--megabits", "0.001", "--quiet")
    assert outcome.code == 0, outcome.err
    for shown in ("parameters", "a rank", "tokens/s", "plain fp32 would reach", "It fits"):
        assert shown in outcome.out
    # which of the two depends on how fast this machine computes now
    assert re.search(r"sync local, (int4|two_bit) on the wire", outcome.out)
    assert "Start it with" not in outcome.out  # one command would not start several machines


@pytest.fixture
def lines(shoal: Shoal) -> Path:
    """A corpus of short documents."""
    Path("lines.txt").write_text("".join(f"the shoal swims {'on ' * (number % 9)}\n" for number in range(400)))
    words = ["--data.sources", "lines.txt", "--data.documents", "line", "--data.directory", "data/lines"]
    assert shoal("prepare", *words, "--data.held_out", "0.2", "--tokenizer.kind", "char").code == 0
    return Path("data/lines")


@pytest.fixture
def extents(monkeypatch: pytest.MonkeyPatch) -> list[Extent]:
    """What rehearsals are asked for, none of which takes place."""
    asked: list[Extent] = []

    def rehearse(recipe: Recipe, workers: int, extent: Extent) -> Rehearsal:
        asked.append(extent)
        return REHEARSAL

    monkeypatch.setattr("shoal.commands.plan.rehearse", rehearse)
    return asked


def test_a_plan_counts_real_tokens_as_the_run_does_and_says_how_to_start_it(
    shoal: Shoal, lines: Path, extents: list[Extent]
) -> None:
    words = ["--data.directory", lines, *TINY, "--model.context", "48", "--data.rows", "grouped", "--train.tokens", "20_000"]
    planned = json.loads(shoal("plan", *words, "--json", "--quiet").out)["forecast"]
    resolved = json.loads(shoal("pretrain", "--dry-run", *words, "--json").out)
    assert (planned["steps"], planned["tokens"]) == (resolved["steps"], resolved["tokens"])
    assert planned["steps"] > 20_000 / 16 / 48
    told = shoal("plan", *words, "--quiet").out
    assert f"Start it with: shoal pretrain --data.directory {lines} --model.preset qwen3-tiny" in told


def test_all_corpora_of_a_mixture_are_planned_with(shoal: Shoal, lines: Path, extents: list[Extent]) -> None:
    shutil.copytree(lines, "data/more")
    words = [*TINY, "--train.steps", "9", "--quiet", "--json"]
    one = json.loads(shoal("plan", "--data.directory", lines, *words).out)["forecast"]["evaluation_seconds"]
    two = json.loads(shoal("plan", "--data.mixture", "[lines, more]", *words).out)["forecast"]["evaluation_seconds"]
    assert extents[1].held_out == 2 * extents[0].held_out
    assert two - REHEARSAL.evaluation == pytest.approx(2 * (one - REHEARSAL.evaluation))


def test_what_does_not_fit_is_not_tried_but_the_mildest_change_is(
    shoal: Shoal, corpus: Path, monkeypatch: pytest.MonkeyPatch, rehearsed: None
) -> None:
    words = ["plan", "--data.directory", corpus, *TINY, "--train.steps", "4", "--train.global_batch", "4096"]
    whole = json.loads(shoal("pretrain", "--dry-run", "--json", *words[1:]).out)["memory_bytes"]
    monkeypatch.setattr("shoal.plan.resources.available_memory_bytes", lambda: whole - 1)
    facts = json.loads(shoal(*words, "--json", "--quiet").out)
    assert (facts["fits"], facts["memory_bytes"], facts["with"]) == (False, whole, {"train.micro_batch": 2048})
    assert facts["forecast"]["step_seconds"] > 0
    assert facts["suggestions"][0]["fits"]
    monkeypatch.setattr("shoal.plan.resources.available_memory_bytes", lambda: 1000)
    told = shoal(*words).out
    assert "It does not fit" in told
    assert "too large still: --train.micro_batch 1 " in told


def test_a_learning_rate_is_found_by_ranks_and_told_as_it_is_typed(shoal: Shoal, corpus: Path, tmp_path: Path) -> None:
    words = ["plan", "--data.directory", corpus, *TINY, "--train.steps", "4", "--optimizer.learning_rate", "0.01"]
    outcome = shoal(*words, "--find-lr", "--find-lr-steps", "40", "--workers", "2", "--picture", "rates.png", "--quiet")
    assert outcome.code == 0, outcome.err
    assert "put into the recipe: optimizer.learning_rate: " in outcome.out
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["rates.png"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "0"], "--workers is 0; accepted: a whole number above 0"),
        (["--machines", "0"], "--machines is 0; accepted: a whole number above 0"),
        (["missing.yaml"], "missing.yaml: no such recipe"),
        ([], "data/run: no corpus there"),
        (["--picture", "rates.png"], "--picture draws what --find-lr has found: give both"),
        (["--find-lr", "--machines", "2"], "--machines makes no difference to --find-lr"),
        (["--parallel.sync", "server"], "'parallel.sync' is server: parameter servers can't be rehearsed"),
        (["--train.stepz", "3"], "--train.stepz is not a recipe key; the nearest is 'train.steps'"),
    ],
)
def test_what_can_not_be_planned_is_told_in_one_line(shoal: Shoal, tmp_path: Path, words: list[str], told: str) -> None:
    outcome = shoal("plan", *words)
    assert outcome.code == 2
    assert outcome.error.startswith(told)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_the_model_that_lies_on_several_machines_is_not_rehearsed(shoal: Shoal, corpus: Path) -> None:
    words = ["plan", "--data.directory", corpus, *TINY, "--train.steps", "4", "--tensor", "2"]
    outcome = shoal(*words, "--machines", "2", "--workers", "1")
    assert outcome.code == 2
    assert outcome.error.startswith("--workers is 1, and 2 ranks divide a copy of the model")


def test_a_recipe_without_an_end_is_told_before_anything_starts(shoal: Shoal, corpus: Path) -> None:
    outcome = shoal("plan", "--data.directory", corpus, *TINY)
    assert outcome.error.startswith("the run has no end: set train.steps")


def test_what_a_rehearsal_runs_into_is_told_as_the_run_would() -> None:
    with pytest.raises(InputError, match=r"^nothing\.yaml: no such recipe"):
        run_shoal(["pretrain", "nothing.yaml", "--json"])
