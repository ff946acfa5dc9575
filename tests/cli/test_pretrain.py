"""`shoal pretrain` before it starts: what a run takes, and what is wrong with it."""

import json
from pathlib import Path

import pytest

from shoal.core.recipe_file import build_recipe, read_recipe, recipe_tree
from tests.cli.conftest import Shoal

TINY = ["--model.preset", "llama-tiny", "--model.layers=1", "--model.dim", "32", "--model.heads", "2", "--train.steps", "5"]


def test_a_dry_run_says_what_a_run_takes_and_starts_nothing(shoal: Shoal, tmp_path: Path) -> None:
    plain = shoal("pretrain", "--dry-run", *TINY)
    structured = shoal("pretrain", "--dry-run", "--json", *TINY)
    facts = json.loads(structured.out)
    assert (plain.code, structured.code, plain.err, structured.err) == (0, 0, "", "")
    assert structured.out.count("\n") == 1
    assert facts["recipe"] == recipe_tree(read_recipe(None, TINY))
    assert facts["steps"] == 5
    assert facts["tokens"] == 5 * facts["tokens_per_step"] == 5 * 16 * 512
    assert facts["corpus_tokens"] is None
    assert facts["memory_bytes"] > 4 * 4 * facts["parameters"]
    for shown in (f"{facts['parameters']:,}", f"{facts['tokens']:,}", "steps            5", "GB a rank", "not prepared yet"):
        assert shown in plain.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_with_a_corpus_counts_its_tokens(shoal: Shoal, corpus: Path) -> None:
    facts = json.loads(shoal("pretrain", "--dry-run", "--json", "--data.directory", corpus, *TINY).out)
    assert facts["corpus_tokens"] > 20_000


@pytest.mark.parametrize("kind", ["stream", "packed", "grouped"])
def test_a_dry_run_says_how_many_positions_are_real_and_counts_real_tokens(shoal: Shoal, corpus: Path, kind: str) -> None:
    words = ["pretrain", "--dry-run", "--data.directory", corpus, "--data.rows", kind, "--model.context", 48, *TINY]
    facts = json.loads(shoal(*words, "--json").out)
    rows = facts["rows"]
    assert (rows["kind"], rows["epochs"]) == (kind, {"": pytest.approx(5 * 16 / rows["samples"])})
    assert 0.98 < rows["real_share"] <= 1
    assert facts["tokens_per_step"] == round(16 * rows["tokens_per_row"]) <= 16 * 48
    assert f"{rows['samples']:,} {kind}, {rows['real_share']:.2%} of positions real" in shoal(*words).out


def test_a_dry_run_of_growing_steps_counts_what_they_read_and_refuses_ranks_that_the_first_leaves_empty(
    shoal: Shoal, corpus: Path
) -> None:
    growth = ["--schedule.batch_start", 4, "--schedule.batch_until", 0.6]  # steps of 4, 8, 12, 16, 16
    words = ["pretrain", "--dry-run", "--json", "--data.directory", corpus, "--model.context", 48, *growth, *TINY]
    rows = json.loads(shoal(*words).out)["rows"]
    assert rows["epochs"][""] == pytest.approx((4 + 8 + 12 + 16 + 16) / rows["samples"])
    refused = shoal(*words, "--world", 8)
    assert (refused.code, refused.error) == (2, "schedule.batch_start is 4, less than one sequence for each of 8 ranks")


def test_a_dry_run_counts_the_epochs_of_a_batch_that_grows(shoal: Shoal, corpus: Path) -> None:
    words = ["--dry-run", "--json", "--data.directory", corpus, *TINY, "--model.context", 16, "--schedule.batch_start", 4]
    facts = json.loads(shoal("pretrain", *words, "--schedule.batch_until", "0.8").out)
    assert facts["tokens"] < 5 * 16 * 16
    assert facts["rows"]["epochs"][""] == pytest.approx(facts["tokens"] / 16 / facts["rows"]["samples"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--samples.prompts", "日"], "'samples.prompts': the character '日' (U+65E5) is not in the character vocabulary"),
        (
            ["--task", "masked", "--model.preset", "bert-mini", "--samples.prompts", "the sea"],
            "'samples.prompts': 'the sea' has no [MASK], which stands where a word is to be found",
        ),
        (
            ["--task", "masked", "--model.preset=bert-mini", "--model.context=8", "--samples.prompts", "the sea [MASK]"],
            "'samples.prompts': the text has 11 tokens, the model's context is 8",
        ),
        (
            ["--task", "infill", "--model.context", "64", "--samples.prompts", "the [MASK] sea"],
            "'samples.prompts': 80 tokens leave no room for the text around them in a context of 64",
        ),
        (
            ["--task", "infill", "--samples.prompts", "[MASK] the [MASK]"],
            "'samples.prompts': '[MASK] the [MASK]' has 2 [MASK], and a model that fills in fills one",
        ),
    ],
)
def test_prompts_that_no_sample_can_be_made_of_are_told_before_the_run(shoal: Shoal, words: list[str], told: str) -> None:
    Path("text.txt").write_text("the sea and the shoal\n" * 50)
    task = words[:2] if words[0] == "--task" else []
    made = ["--data.sources", "text.txt", "--data.held_out_by", "tail", "--tokenizer.kind", "char"]
    assert shoal("prepare", *task, *made).code == 0
    outcome = shoal("pretrain", *TINY, *words)
    assert outcome.code == 2
    assert outcome.error.startswith(told)
    assert not Path("runs").exists()


def test_the_corpora_of_a_mixture_are_not_prepared_as_one(shoal: Shoal) -> None:
    told = shoal("prepare", "--data.mixture", "[a, b]").error
    assert told.startswith("'data.mixture' names corpora that are prepared one by one")


def test_more_ranks_take_less_memory_each(shoal: Shoal) -> None:
    one, four = (json.loads(shoal("pretrain", "--dry-run", "--json", "--workers", n, *TINY).out) for n in (1, 4))
    assert four["memory_bytes"] < one["memory_bytes"]
    assert four["tokens"] == one["tokens"]


def test_a_recipe_of_shoal_s_own_is_known_by_its_name_from_any_folder(shoal: Shoal) -> None:
    facts = json.loads(shoal("pretrain", "gpt-demo", "--dry-run", "--json").out)
    assert facts["recipe"]["name"] == "demo"
    assert facts["steps"] is None


def test_the_printed_recipe_is_a_recipe(shoal: Shoal, tmp_path: Path) -> None:
    shown = shoal("pretrain", "--dry-run", "--seed", "5", *TINY).out
    (tmp_path / "r.yaml").write_text(shown[: shown.index("parameters  ")])
    assert read_recipe(tmp_path / "r.yaml") == build_recipe(recipe_tree(read_recipe(None, ["--seed", "5", *TINY])))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workers", "0"], "--workers is 0; accepted: a whole number above 0, or LEAST:MOST, such as 1:4"),
        (["--workers", "two"], "--workers is two; accepted: a whole number above 0"),
        (["--workers", "0:2"], "--workers is 0:2; accepted: a whole number above 0"),
        (["--workers", "3:2"], "--workers is 3:2; accepted: a whole number above 0"),
        (["--workers", "1:2"], "--workers is 1:2, but checkpoint.every is 0: there would be nothing to go on from"),
        (["--workers", "1:20", "--checkpoint.every=5"], "--workers is 1:20, but train.global_batch is 16, less than one"),
        (["--workers", "-3", "--dry-run"], "--workers is -3"),
        (["--resume", "--overwrite"], "--resume goes on and --overwrite starts anew: give one of them"),
        (["missing.yaml"], "missing.yaml: no such recipe"),
        (["gpt-dem"], "gpt-dem: no such recipe; did you mean gpt-demo?"),
        (["folder"], "folder: is a folder; a recipe is a YAML file"),
        (["words.yaml"], "words.yaml: a recipe is a mapping of sections"),
        (["bytes.yaml"], "bytes.yaml: not UTF-8 text"),
        (["twice.yaml"], "twice.yaml:2: not valid YAML: 'seed' is given twice"),
        (
            ["empty.yaml"],
            "data/run: no corpus there (no manifest.json); make one: shoal prepare RECIPE, with the recipe that names it, "
            "or of Python's own source: shoal prepare --data.directory data/run",
        ),
        (["--train.steps"], "--train.steps: needs a value"),
        (["--train.steps=x"], "--train.steps is 'x', a text; accepted: a whole number from 0"),
        (["--steps", "5"], "--steps is not a recipe key; the nearest is 'train.steps'"),
        (["--global-batch=5"], "--global_batch is not a recipe key; the nearest is 'train.global_batch'"),
        (["--train", "5"], "--train is a section: give its keys"),
        (["--trian.steps", "3"], "--trian.steps: 'trian' is not a recipe key; the nearest is 'train'"),
        (["--seed", "-1"], "--seed is -1, a whole number; accepted: a whole number from 0"),
        (["--name", "../x"], "--name is '../x', a text; accepted: text of the form"),
        (["--name", "日本"], "--name is '日本', a text; accepted: text of the form"),
        (["--data.directory", "words.yaml"], "words.yaml: no finished corpus there"),
        (["--dry-run"], "the run has no end: set train.steps, train.tokens or train.minutes"),
        (["--dry-run", "--train.minutes", "1", "--parallel.exact", "true"], "train.minutes ends a run by the clock"),
        (["--dry-run", "--train.steps", "1", "--parallel.exact", "true", "--workers", "3"], "3 ranks can't have equal"),
        (["--dry-run", "--model.preset", "gtp2"], "'model': there is no preset 'gtp2'; there are: gpt2-small"),
        (["--dry-run", "--model.dim", "100"], "'model': dim (100) must be a multiple of heads (12), or set head_dim"),
    ],
)
def test_what_can_not_be_run_is_told_in_one_line_and_leaves_nothing(
    shoal: Shoal, tmp_path: Path, words: list[str], expected: str
) -> None:
    Path("folder").mkdir()
    Path("words.yaml").write_text("words\n")
    Path("bytes.yaml").write_bytes(b"\xff")
    Path("twice.yaml").write_text("seed: 1\nseed: 2\n")
    Path("empty.yaml").write_text("")
    before = set(tmp_path.iterdir())
    outcome = shoal("pretrain", *words)
    assert outcome.code == 2
    assert outcome.error.startswith(expected)
    assert set(tmp_path.iterdir()) == before


def test_a_file_where_the_runs_should_lie_is_told(shoal: Shoal, corpus: Path) -> None:
    Path("runs").write_text("words\n")
    outcome = shoal("pretrain", "--data.directory", corpus, *TINY)
    assert (outcome.code, outcome.error) == (2, "runs/run: no folder can be made there: Not a directory")


def test_a_key_given_twice_has_its_last_value(shoal: Shoal) -> None:
    facts = json.loads(shoal("pretrain", "--dry-run", "--json", *TINY, "--train.steps=7", "--train.steps", "9").out)
    assert facts["steps"] == 9


def test_a_dry_run_of_many_ranks_tells_what_each_holds_and_sends(shoal: Shoal) -> None:
    words = ("pretrain", "--dry-run", *TINY, "--world", "8", "--shard", "zero3", "--tensor", "2")
    facts = json.loads(shoal(*words, "--json").out)
    assert facts["recipe"]["parallel"]["shard"] == "zero3"
    layout = facts["layout"]
    assert (layout["replicate"], layout["shard"], layout["tensor"]) == (1, 4, 2)
    assert sum(layout["held"].values()) == pytest.approx(16 * facts["parameters"] / 8, rel=0.1)
    shown = " ".join(shoal(*words).out.split())
    for text in ("8: replicate 1 × shard 4 × tensor 2", "model states", "reduce-scatter", "at 100 Mbit/s"):
        assert text in shown


def test_a_world_is_only_imagined_in_a_dry_run(shoal: Shoal) -> None:
    refused = shoal("pretrain", *TINY, "--world", "8")
    assert refused.code == 2
    assert "only beside --dry-run" in refused.err
