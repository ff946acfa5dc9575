"""Tasks chat and prefer, as a person types them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome, Shoal
from tests.models.shapes import BERT
from tests.serve.languages import write_language_model
from tests.tasks.dialogues import dialogues, pairs, write_decoder, write_rows
from tests.tasks.texts import tokenizer

USER, ASSISTANT = {"role": "user", "content": "the sea"}, {"role": "assistant", "content": "a fish"}
SMALL = (
    "--train.steps", 3, "--train.epochs", 0, "--train.global_batch", 4, "--train.compile", "off", "--parallel.threads", 1,
    "--evaluation.patience", 0, "--chat.reply", 5, "--quiet",
)  # fmt: skip


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "decoder")


def tune(shoal: Shoal, task: str, model: Path, rows: list[dict[str, Any]], *words: object) -> Outcome:
    write_rows(Path("rows.jsonl"), rows)
    return shoal("finetune", "--task", task, "--model", model, "--data", "rows.jsonl", "--name", task, *SMALL, *words)


def test_a_model_is_taught_to_talk_then_to_prefer_and_evaluated_to_the_same_figures(shoal: Shoal, decoder: Path) -> None:
    Path("judge.py").write_text("import json, sys\nrow = json.load(sys.stdin)\nprint('tie')\n")
    judge = ("--chat.judge", f"{sys.executable} judge.py")
    taught = tune(shoal, "chat", decoder, dialogues(12), "--json", *judge)
    assert taught.code == 0, taught.err
    result = json.loads(taught.out)
    assert result["eval_win_rate"] == 0.5 and result["eval_tied"] == 1.0
    row = json.loads(Path("runs/chat/predictions.jsonl").read_text().splitlines()[0])
    assert row["prediction"].keys() == {"loss", "bytes", "reply", "verdict"}
    said = json.loads(Path("runs/chat/model/config.json").read_text())["shoal_task"]["settings"]
    assert (said["judge"], said["against"]) == ("", "")
    again = json.loads(shoal("evaluate", "runs/chat", "--judge", judge[1], "--json").out)
    for name in ("eval_loss", "eval_bpb", "eval_win_rate"):
        assert again[name] == pytest.approx(result[name], rel=1e-6)

    answers = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in pairs(12)]
    preferring = tune(shoal, "prefer", Path("runs/chat"), answers, "--json")
    assert preferring.code == 0, preferring.err
    result = json.loads(preferring.out)
    again = json.loads(shoal("evaluate", "runs/prefer", "--json").out)
    for name in ("eval_loss", "eval_accuracy", "eval_margin", "eval_chosen_reward", "eval_rejected_reward"):
        assert again[name] == pytest.approx(result[name], rel=1e-4, abs=1e-6)
    ends = [Path(f"runs/{name}/model/generation_config.json").read_text() for name in ("chat", "prefer")]
    assert ends[0] == ends[1]
    assert "no use for --judge" in shoal("evaluate", "runs/prefer", "--judge", "true").error


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("chat", {"messages": [USER, USER, ASSISTANT]}, "turn 2 is out of order"),
        ("chat", {"messages": [USER, {"role": "wizard", "content": "x"}]}, "turn 2 has the role 'wizard'"),
        ("chat", {"messages": [USER, {"role": "assistant", "content": ""}]}, "turn 2 is empty"),
        ("chat", {"messages": [USER]}, "the assistant has no turn"),
        ("chat", {"messages": [{"role": "system", "content": "sea " * 90}, USER, ASSISTANT]}, "shorten what is before it"),
        ("chat", {"talk": [USER, ASSISTANT]}, "no column for the messages"),
        ("prefer", {"prompt": "the", "chosen": "sea", "rejected": "sea"}, "are the same answer"),
        ("prefer", {"prompt": "the", "chosen": "sea"}, "no column for the rejected"),
        ("prefer", {"prompt": [USER], "chosen": "sea", "rejected": "fish"}, "has no chat template"),
    ],
)
def test_an_example_that_can_not_be_used_is_named_and_may_be_left_out(
    shoal: Shoal, decoder: Path, task: str, row: dict[str, Any], message: str
) -> None:
    good = {"chat": dialogues(9), "prefer": pairs(9)}[task]
    refused = tune(shoal, task, decoder, [*good[:1], row, *good[1:]])
    assert refused.code == 2
    assert refused.error.startswith("rows.jsonl:2: ") and message in refused.error
    assert "--examples.on_error skip" in refused.error and not Path(f"runs/{task}/model").exists()
    if message in ("turn 2 is out of order", "are the same answer"):
        left = tune(shoal, task, decoder, [*good[:1], row, *good[1:]], "--examples.on_error", "skip", "--overwrite")
        assert left.code == 0, left.err


def test_what_can_not_work_is_refused_before_anything_starts(shoal: Shoal, decoder: Path, tmp_path: Path) -> None:
    rows = dialogues(9)
    write_language_model(tmp_path / "bert", tokenizer(), BERT)
    for words, message in (
        (("--model", tmp_path / "bert"), "task 'chat' needs a model that sees only what is before"),
        (("--tuning.what", "frozen"), "'tuning.what' frozen trains a head alone"),
        (("--chat.judge", "no-such-judge --now"), "there is no program 'no-such-judge'"),
        (("--chat.template", "none.jinja"), "none.jinja: no chat template can be read there"),
        (("--chat.against", "rows.jsonl"), "rows.jsonl:1: not a prediction of task chat"),
        (("--examples.validation", "empty.jsonl"), "no examples for 'validation'"),
    ):
        Path("empty.jsonl").write_text("")
        refused = tune(shoal, "chat", decoder, rows, *words)
        assert refused.code == 2 and message in refused.error
    refused = tune(shoal, "prefer", decoder, pairs(9), "--prefer.reference", "nowhere")
    assert refused.code == 2 and "'prefer.reference': nowhere: no such model folder" in refused.error


def test_what_a_short_context_cuts_is_told_once(shoal: Shoal, decoder: Path) -> None:
    write_rows(Path("rows.jsonl"), dialogues(9))
    words = ("--model", decoder, "--data", "rows.jsonl", "--examples.length", 24, *SMALL[:-1])
    told = shoal("finetune", "--task", "chat", *words)
    assert told.err.count("dialogues are longer than the 24 tokens that the model reads, and lost their beginning") == 1
    assert told.err.count("4 new tokens, which begin at random") == 1
