"""Sorting texts, on the command line: a run, its files, the same figures again, and what is wrong with what was given."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from shoal.core.files import read_json
from tests.cli.conftest import Shoal
from tests.train.classifiers import sentences, write_base, write_sentences

QUICK = (
    "--train.compile", "off", "--train.epochs", "0", "--train.steps", "4", "--evaluation.every", "2",
    "--tuning.dropout", "0", "--model.dropout", "0",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def unmeasured() -> Iterator[None]:
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights."""
    return write_base(tmp_path_factory.mktemp("base") / "model", "bert")


@pytest.fixture
def finetune(shoal: Shoal, base: Path) -> Any:
    """Run `shoal finetune` on data.jsonl, which is in the current folder."""
    write_sentences(Path("data.jsonl"), sentences(pairs=True))
    return lambda *words: shoal(
        "finetune", "--task", "classify", "--model", base, "--data", "data.jsonl", *QUICK, *words
    )  # fmt: skip


def test_random_weights_are_a_beginning_with_a_tokenizer_of_their_own(shoal: Shoal) -> None:
    rows = sentences(pairs=True)
    write_sentences(Path("data.jsonl"), [{**row, "label": row["label"].replace("o", "ŏ")} for row in rows])
    shape = {"preset": "encoder-tiny", "layers": 1, "dim": 16, "heads": 2, "hidden": 32, "context": 64}
    flags = [word for key, value in shape.items() for word in (f"--model.{key}", value)]
    flags += ["--tokenizer.kind", "wordpiece", "--tokenizer.vocabulary", 40]
    words = ("finetune", "--task", "classify", "--data", "data.jsonl", *QUICK, *flags)
    assert shoal(*words, "--name", "scratch").code == 0
    assert "ŏ" not in Path("runs/scratch/model/tokenizer.json").read_text()  # a label is no text
    result = read_json(Path("runs/scratch/result.json"))
    again = json.loads(shoal("evaluate", "runs/scratch", "--json").out)
    assert again["eval_loss"] == pytest.approx(result["eval_loss"], rel=1e-5)
    assert "a shape: --model.preset encoder-tiny" in shoal("finetune", "--task", "classify", "--data", "data.jsonl").error
    vague = ("--augment.share", 0.5, "--augment.masked", 0.2, "--overwrite")
    assert "'augment.masked' needs a model that has learnt words" in shoal(*words, *vague).error
    assert "'tuning.what' is for a model that has learnt" in shoal(*words, "--tuning.what", "frozen", "--overwrite").error


def test_a_run_leaves_its_figures_predictions_and_pages_and_evaluates_the_same(shoal: Shoal, finetune: Any) -> None:
    rows = sentences(pairs=True)
    rows[3]["text"] = "<script>alert(1)</script> the"
    write_sentences(Path("test.jsonl"), rows[:17])
    outcome = finetune("--examples.test", "test.jsonl", "--name", "sorted")
    assert outcome.code == 0 and outcome.out == ""
    for told in ("test loss", "% right, macro-F1", "precision", "told long", "told short"):
        assert told in outcome.err
    result = read_json(Path("runs/sorted/result.json"))
    held_out = result["examples"]["validation"]
    assert result["examples"] == {"train": len(rows) - held_out, "validation": held_out, "test": 17}
    assert sum(map(sum, result["test_confusion"])) == 17 and list(result["test_labels"]) == ["long", "short"]
    lines = [json.loads(line) for line in Path("runs/sorted/predictions.jsonl").read_text().splitlines()]
    assert [line["where"] for line in lines] == [f"test.jsonl:{number}" for number in range(1, 18)]
    right = [line["prediction"]["label"] == line["label"] for line in lines]
    assert sum(right) / 17 == pytest.approx(result["test_accuracy"])

    page = Path("runs/sorted/report.html").read_text()
    assert page.count("<svg") == 4 + 2 + 1 and "<script" not in page
    for heading in ("Learning curve", "Labels, on test examples", "What is taken for what", "Wrong with most confidence"):
        assert f"<h2>{heading}</h2>" in page
    assert Path("runs/sorted/confusion.png").read_bytes().startswith(b"\x89PNG")
    card = Path("runs/sorted/model/README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "| test | loss" in card

    again = json.loads(shoal("evaluate", "runs/sorted", "--predictions", "again.jsonl", "--json").out)
    for name, value in result.items():
        if name.startswith(("eval_", "test_")) and name != "eval_seconds":
            assert again[name] == (pytest.approx(value, rel=1e-5) if name.endswith("_loss") else value), name
    for line, other in zip(lines, Path("again.jsonl").read_text().splitlines(), strict=True):
        there = json.loads(other)["prediction"]
        assert there["probabilities"] == pytest.approx(line["prediction"].pop("probabilities"), abs=1e-5)
        assert there | {"probabilities": None} == line["prediction"] | {"probabilities": None}
    shown = shoal("evaluate", "runs/sorted").out
    assert "classify: held-out loss" in shown and "classify: test loss" in shown and "told short" in shown

    table = "".join(f"{row['label']}\t{row['text']}\t{row.get('text_b', '-')}\n" for row in rows)
    Path("other.tsv").write_text(table)
    columns = "{label: 1, text: 2, text_b: 3}"
    other = json.loads(shoal("evaluate", "runs/sorted", "--data", "other.tsv", "--columns", columns, "--json").out)
    assert other["examples"] == other["eval_targets"] == len(rows)
    assert (
        "no column for the label" in shoal("evaluate", "runs/sorted", "--data", "other.tsv", "--columns", "{text: 2}").error
    )


def test_several_labels_a_text(shoal: Shoal, finetune: Any) -> None:
    write_sentences(Path("data.jsonl"), sentences(several=True))
    outcome = finetune("--classify.several", "true", "--tuning.pooling", "mean", "--json")
    result = json.loads(outcome.out)
    assert result["best"]["metric"] == "eval_macro_f1" and "eval_confusion" not in result
    again = json.loads(shoal("evaluate", "runs/run", "--json").out)
    assert all(again[f"eval_{name}"] == result[f"eval_{name}"] for name in ("accuracy", "micro_f1", "macro_f1", "labels"))
    page = Path("runs/run/report.html").read_text()
    assert "Labels, on held-out examples" in page and "What is taken for what" not in page
    card = Path("runs/run/model/README.md").read_text()
    assert "library_name: shoal" in card and "no place for a head over mean pooling" in card


def test_texts_that_are_cut_and_examples_that_are_left_out_are_told_once(finetune: Any) -> None:
    rows = sentences()
    rows[5]["text"] *= 30
    rows[7]["label"] = None
    write_sentences(Path("data.jsonl"), rows)
    outcome = finetune("--examples.on_error", "skip")
    assert outcome.code == 0
    assert outcome.err.count("1 examples left out, which can't be used: data.jsonl:8: the label is missing") == 1
    assert outcome.err.count("1 of 59 texts are longer than the 40 tokens that the model reads, and lost their end") == 1
    result = read_json(Path("runs/run/result.json"))
    assert (result["examples_left_out"], result["texts_cut"]) == (1, 1)


def replaced(number: int, **values: Any) -> list[dict[str, Any]]:
    rows = sentences()
    rows[number] |= values
    return rows


NAMED = ("--classify.labels", "[long, short]")
BAD: dict[str, tuple[list[dict[str, Any]], tuple[str, ...], str]] = {
    "unknown label": (replaced(9, label="other"), NAMED, "data.jsonl:10: unknown label 'other'"),
    "out of range": (replaced(9, label=2), NAMED, "data.jsonl:10: the label 2 is out of range"),
    "no label": (replaced(9, label=None), (), "data.jsonl:10: the label is missing; mend it, or leave out what can't be"),
    "empty text": (replaced(9, text=" "), (), "data.jsonl:10: the text is empty; mend it"),
    "no text": (replaced(9, text=3), (), "data.jsonl:10: the text is int, not text; mend it"),
    "half a character": (replaced(9, text="\ud800"), (), "data.jsonl:10: the text holds half a surrogate pair"),
    "a list": (replaced(9, label=["long"]), (), "data.jsonl:10: the label is a list; several labels a text"),
    "more labels than data": (
        [row | {"label": number} for number, row in enumerate(sentences())], (), "different labels (0, ",
    ),
    "one label": ([row | {"label": 1} for row in sentences()], (), "the training examples have one label, 1"),
    "no column": ([{"said": row["text"]} for row in sentences()], (), "data.jsonl:1: no column for the text (text, "),
    "nothing": ([], (), "data.jsonl: no examples for 'train'; give more, or other files: --examples.train"),
    "too few": (sentences()[:2], ("--examples.held_out", "0.01"), "data.jsonl: no examples for 'validation'"),
    "all left out": (
        [row | {"text_b": ""} for row in sentences()], ("--examples.on_error", "skip"),
        "data.jsonl: no examples for 'train'",
    ),
    "no room": (sentences(), ("--examples.length", "3"), "'examples.length' is 3, in which no two texts"),
    "pooling": (sentences(), ("--tuning.pooling", "middle"), "--tuning.pooling"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_work_is_told_before_anything_is_made(finetune: Any, case: str) -> None:
    rows, words, told = BAD[case]
    write_sentences(Path("data.jsonl"), rows)
    outcome = finetune(*words)
    assert told in outcome.error and outcome.code == 2
    assert not Path("runs").exists()


def test_bad_input_leaves_the_run_that_was_there(finetune: Any) -> None:
    assert finetune().code == 0
    write_sentences(Path("data.jsonl"), replaced(9, label=None))
    assert "the label is missing" in finetune("--overwrite").error
    assert Path("runs/run/model/model.safetensors").exists() and Path("runs/run/result.json").exists()


def test_a_model_that_was_not_fine_tuned_has_no_labels(shoal: Shoal, base: Path) -> None:
    write_sentences(Path("data.jsonl"), sentences())
    assert "was not fine-tuned, and --data is for labelled examples" in shoal("evaluate", base, "--data", "data.jsonl").error
