"""`shoal evaluate`: loss and bits per byte, or one line that says what it can't be measured on."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shoal.data.tokenizer import build_char
from shoal.serve.generation import load_language_model
from tests.cli.conftest import Shoal


def test_loss_on_a_text_is_that_of_the_plain_formula(shoal: Shoal, model: Path) -> None:
    text = "the shoal swims.\n"
    Path("text.txt").write_text(text)
    outcome = shoal("evaluate", model, "--text", "text.txt", "--json")
    assert (outcome.code, outcome.out.count("\n")) == (0, 1)
    result = json.loads(outcome.out)
    language = load_language_model(model)
    end = language.tokenizer.end_of_text
    tokens = torch.tensor([end, *language.tokenizer.encode(text).tolist(), end])
    with torch.no_grad():
        logits = language.model.project(language.model(tokens[None, :-1]))[0]
    assert result["eval_loss"] == pytest.approx(F.cross_entropy(logits, tokens[1:]).item(), rel=1e-5)
    assert result["bytes"] == len(text)
    assert result["source"] == "text"


def sliding_loss(folder: Path, text: str, stride: int) -> float:
    """The mean loss of each token, in float64, from the window that begins at the last multiple of `stride` that has it."""
    language = load_language_model(folder)
    model, end = language.model.double(), language.tokenizer.end_of_text
    tokens = torch.tensor([end, *language.tokenizer.encode(text).tolist(), end])
    context, losses = model.config.context, []
    for place in range(1, len(tokens)):
        begin = max(0, -(-(place - context) // stride)) * stride
        with torch.no_grad():
            logits = model.project(model(tokens[None, begin:place]))[0, -1]
        losses.append(F.cross_entropy(logits, tokens[place]))
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("stride", [None, 1, 5, 24])
def test_windows_on_a_text_overlap_and_each_token_counts_once(shoal: Shoal, model: Path, stride: int | None) -> None:
    text = "the shoal swims with one mind and every fish reads a part of the sea.\n"
    Path("text.txt").write_text(text)
    words = [] if stride is None else ["--stride", stride]
    result = json.loads(shoal("evaluate", model, "--text", "text.txt", *words, "--json").out)
    context = load_language_model(model).model.config.context
    expected = sliding_loss(model, text, stride or context // 2)
    assert result["eval_targets"] == len(text) + 1
    assert result["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert result["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert result["eval_bpb"] == pytest.approx(expected / math.log(2) * (len(text) + 1) / len(text), rel=1e-5)


@pytest.mark.thorough
def test_a_task_of_lm_eval_in_a_local_file_is_done(shoal: Shoal, model: Path) -> None:
    pytest.importorskip("lm_eval")
    Path("tasks").mkdir()
    Path("tasks/sea.jsonl").write_text('{"begins": "the shoal", "ends": ["swims", "reads"], "right": 1}\n' * 3)
    Path("tasks/sea.yaml").write_text(
        "task: sea\ndataset_path: json\ndataset_kwargs: {data_files: {test: sea.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{begins}}'\ndoc_to_choice: '{{ends}}'\ndoc_to_target: right\n"
        "metric_list: [{metric: acc}]\n"
    )
    outcome = shoal("evaluate", model, "--harness", "tasks", "--limit", 2, "--json")
    assert (outcome.code, outcome.out.count("\n")) == (0, 1)
    told = json.loads(outcome.out)["harness"]["sea"]
    assert told["questions"] == 2
    assert told["figures"]["acc"] in (0.0, 1.0)
    assert "sea" in shoal("evaluate", model, "--harness", "tasks/sea.yaml").out


def test_a_model_is_evaluated_on_a_corpus_and_a_run_on_its_own(shoal: Shoal, model: Path, corpus: Path) -> None:
    given = json.loads(shoal("evaluate", model, "--corpus", corpus, "--json").out)
    assert given["eval_targets"] > 2000
    assert 1 < given["eval_loss"] < 100
    ratio = given["tokens"] / given["bytes"]
    assert given["eval_bpb"] == pytest.approx(given["eval_loss"] / math.log(2) * ratio, rel=1e-3)
    shutil.copytree(model, "run/model")
    Path("run/recipe.yaml").write_text(f"data:\n  directory: {corpus}\n")
    own = json.loads(shoal("evaluate", "run", "--batch", 3, "--json").out)
    assert own["eval_loss"] == pytest.approx(given["eval_loss"], rel=1e-5)
    shown = shoal("evaluate", "run")
    assert f"{given['eval_bpb']:.4f} bits per byte" in " ".join(shown.out.split())


def test_a_run_is_evaluated_on_rows_of_its_own_kind(shoal: Shoal, model: Path, corpus: Path) -> None:
    shutil.copytree(model, "run/model")
    Path("run/recipe.yaml").write_text(f"data:\n  directory: {corpus}\n  rows: packed\n")
    own, other = (json.loads(shoal("evaluate", "run", *words, "--json").out) for words in ([], ["--corpus", corpus]))
    assert own["eval_targets"] == other["eval_targets"] + 1 == own["tokens"]  # the first token too is predicted


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "MODEL: not a run's folder; say what to evaluate on by --text or --corpus"),
        (["--batch", "0"], "--batch is 0; accepted: a whole number above 0"),
        (["--stride", "4"], "--stride is of windows on a text: give one by --text"),
        (["--text", "words.txt", "--stride", "25"], "--stride is 25; accepted: 1 to the model's context of 24"),
        (["--text", "words.txt", "--stride", "0"], "--stride is 0; accepted: 1 to the model's context of 24"),
        (
            ["--text", "words.txt", "--task", "infill", "--stride", "4"],
            "--stride is for models that predict a text from what",
        ),
        (
            ["--harness", "tasks", "--text", "words.txt"],
            "--text is not for --harness, whose tasks bring their own questions",
        ),
        (["--harness", "tasks", "--limit", "0"], "--limit is 0; accepted: a whole number above 0"),
        (["--harness", "tasks", "--predictions", "told.jsonl"], "--predictions is not for --harness"),
        (["--text", "words.txt", "--limit", "5"], "--limit is of the tasks of --harness, and there are none"),
        (["--text", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["--text", "empty.txt"], "empty.txt: holds no text"),
        (["--text", "bytes.txt"], "bytes.txt: not UTF-8 text at byte 0"),
        (["--text", "foreign.txt"], "the character '日' (U+65E5) is not in the character vocabulary"),
        (["--corpus", "nowhere"], "nowhere: no corpus there (no manifest.json)"),
        (["--corpus", "MODEL"], "MODEL: no finished corpus there (no manifest.json)"),
        (["--corpus", "empty.txt"], "empty.txt: no finished corpus there"),
    ],
)
def test_what_it_can_not_be_measured_on_is_told(shoal: Shoal, model: Path, words: list[str], expected: str) -> None:
    Path("empty.txt").write_text("")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00")
    Path("foreign.txt").write_text("日本")
    Path("words.txt").write_text("the shoal")
    outcome = shoal("evaluate", model, *[word.replace("MODEL", str(model)) for word in words])
    assert outcome.code == 2
    assert outcome.error.startswith(expected.replace("MODEL", str(model)))


def test_a_corpus_of_another_tokenizer_is_told(shoal: Shoal, model: Path, corpus: Path) -> None:
    shutil.copytree(corpus, "other")
    manifest = json.loads(Path("other/manifest.json").read_text())
    Path("other/manifest.json").write_text(json.dumps(manifest | {"vocabulary": 999}))
    build_char(map(chr, range(998))).write(Path("other"))
    outcome = shoal("evaluate", model, "--corpus", "other")
    assert outcome.code == 2
    assert outcome.error.startswith("other was prepared with another tokenizer: its vocabulary is 999, the model's ")


def test_the_field_of_a_run_is_that_of_the_text_it_is_evaluated_on(shoal: Shoal, model: Path) -> None:
    shutil.copytree(model, "run/model")
    Path("run/recipe.yaml").write_text("data:\n  text_field: content\n")
    Path("rows.jsonl").write_text('{"content": "the shoal swims"}\n')
    assert json.loads(shoal("evaluate", "run", "--text", "rows.jsonl", "--json").out)["bytes"] == 15


def test_a_damaged_corpus_is_told(shoal: Shoal, model: Path, corpus: Path) -> None:
    shutil.copytree(corpus, "cut")
    shard = next(Path("cut").glob("held_out-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    outcome = shoal("evaluate", model, "--corpus", "cut")
    assert outcome.code == 2
    assert outcome.error.startswith(f"{shard}: has ")
