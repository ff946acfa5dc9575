"""`translate` and `generate` by the command: from examples to figures, texts, and messages for what is wrong."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from shoal.data.tokenizer import difference, read_tokenizer
from tests.cli.conftest import Shoal
from tests.train.test_writers import WORDS, write_pairs

SCRATCH = (
    "--model.preset", "llama-tiny", "--model.layers", 1, "--model.dim", 32, "--model.heads", 2, "--model.hidden", 64,
    "--model.context", 48, "--tokenizer.vocabulary", 290, "--train.steps", 4, "--train.global_batch", 8,
    "--train.compile", "off", "--optimizer.learning_rate", 3e-3, "--quiet",
)  # fmt: skip


def translate(*words: object) -> tuple[object, ...]:
    return (
        "finetune",
        "--task",
        "translate",
        *SCRATCH,
        "--examples.format",
        "lines",
        "--translate.tokens",
        8,
        "--examples.held_out_by",
        "tail",
        *words,
    )


def write_rows(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_from_two_texts_to_a_translator_that_gives_its_figures_again(shoal: Shoal, tmp_path: Path) -> None:
    files = write_pairs(tmp_path)
    words = translate("--name", "en-de", "--data", *files, "--json")
    outcome = shoal(*words)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["eval_bleu_signature"].startswith("nrefs:1") and 0 <= result["eval_chrf"] <= 100
    lines = [json.loads(line) for line in Path("runs/en-de/predictions.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"where", "source", "target", "prediction"}
    assert lines[0]["where"].startswith(f"{files[0]}, {files[1]}: line ")
    again = json.loads(shoal("evaluate", "runs/en-de", "--json").out)
    figures = {"eval_loss", "eval_bpb", "eval_bleu", "eval_chrf", "eval_targets"}
    assert {name: again[name] for name in figures} == pytest.approx({name: result[name] for name in figures})
    first = lines[0]
    written = json.loads(shoal("generate", "runs/en-de", "--prompt", first["source"], "--tokens", 8, "--json").out)
    assert written["text"] == first["prediction"]["text"]
    assert shoal("generate", "runs/en-de", "--prompt", first["source"], "--tokens", 8).out == written["text"] + "\n"
    assert "no source: a model of task 'translate' is given it by --prompt TEXT" in shoal("generate", "runs/en-de").error
    refused = shoal("generate", "runs/en-de", "--prompt", first["source"], "--beams", 2).error
    assert "are for texts that go on, and a model of task 'translate' answers as it was trained" in refused
    tokenizer = Path("runs/en-de/tokenizer/tokenizer.json").read_text()
    assert json.loads(shoal(*words, "--resume", "--train.steps", 6).out)["steps"] == 6
    assert Path("runs/en-de/tokenizer/tokenizer.json").read_text() == tokenizer
    assert difference(read_tokenizer(Path("runs/en-de/model")), read_tokenizer(Path("runs/en-de/tokenizer"))) == ""


def test_a_pre_trained_decoder_learns_to_complete_prompts(shoal: Shoal, tmp_path: Path, model: Path) -> None:
    rows = [{"instruction": f"say {word} or so", "response": word * 3} for word in WORDS] * 4
    data = write_rows("rows.jsonl", rows)
    words = ("finetune", "--task", "generate", "--model", model, "--data", data, "--train.steps", 3)
    words += ("--train.compile", "off", "--examples.held_out_by", "tail", "--generate.between", " ", "--generate.tokens", 6)
    outcome = shoal(*words, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["eval_bpb"] > 0 and 0 <= result["eval_rouge_l"] <= 1
    again = json.loads(shoal("evaluate", "runs/run", "--json").out)
    assert again["eval_rouge_1"] == pytest.approx(result["eval_rouge_1"])


def test_what_is_wrong_with_examples_is_told_with_its_place(shoal: Shoal, tmp_path: Path) -> None:
    files = write_pairs(tmp_path)
    short = tmp_path / "short.de.gz"
    with gzip.open(short, "wt") as file:
        file.write("eins\nzwei\n")
    assert shoal(*translate("--data", files[0], short)).error == (
        f"{files[0]} has 60 lines, {short} has 2 lines: line n of one must belong to line n of the others"
    )
    assert "a file holds one column (source, target), so files come in groups of 2" in shoal(
        *translate("--data", files[0])
    ).error  # fmt: skip
    Path("one.en").write_text("one\ntwo\n\nred\n" * 9)
    Path("one.de").write_text("eins\n \n\nrot\n" * 9)
    few = translate("--data", "one.en", "one.de", "--tokenizer.vocabulary", 265)
    assert shoal(*few).error.startswith(
        "one.en, one.de: line 2: the target is empty, so there is nothing to learn; mend it, or leave out"
    )
    outcome = shoal(*few, "--examples.on_error", "skip")
    assert (outcome.code, "Traceback" in outcome.err) == (0, False), outcome.err
    bare = ("finetune", "--task", "translate", *SCRATCH, "--tokenizer.vocabulary", 258, "--overwrite", "--data")
    numbers = write_rows("rows.jsonl", [{"source": number, "target": "a"} for number in range(30)])
    assert "rows.jsonl:1: the source is int, not text" in shoal(*bare, numbers, "--examples.held_out_by", "tail").error
    assert "no column for the target (target, tgt" in shoal(*bare, write_rows("bare.jsonl", [{"source": "a"}])).error
    assert "no room for a source" in shoal(*translate("--data", *files, "--examples.length", 2, "--overwrite")).error


def test_what_no_model_can_do_is_told_before_anything_starts(shoal: Shoal, tmp_path: Path) -> None:
    files = write_pairs(tmp_path)
    told = shoal("finetune", "--task", "translate", "--examples.format", "lines", "--data", *files).error
    assert told.startswith("no model to start from: give its folder, or a run's, by --model DIR")
    assert "a shape: --model.preset llama-tiny" in told
    encoder = translate("--data", *files, "--model.preset", "bert-mini")
    assert "'translate' needs a model that sees only what is before, and 'model.preset' bert-mini" in shoal(*encoder).error
    assert "'parallel.tensor' divides the vocabulary" in shoal(*translate("--data", *files, "--tensor", 2)).error
    assert "the text yields only" in shoal(*translate("--data", *files, "--tokenizer.vocabulary", 4000)).error
    assert not any(Path("runs").glob("*/metrics.jsonl"))
