"""Encoders and models that fill in, on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.core.files import read_json, write_json
from tests.cli.conftest import Shoal
from tests.models.shapes import BERT, GPT2
from tests.serve.languages import write_language_model
from tests.tasks.texts import tokenizer


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    write_language_model(tmp_path / "bert", tokenizer(), replace(BERT, vocabulary=tokenizer().vocabulary, pooler=False))
    return tmp_path / "bert"


@pytest.fixture
def filler(tmp_path: Path) -> Path:
    folder = tmp_path / "filler"
    write_language_model(folder, tokenizer(), replace(GPT2, vocabulary=tokenizer().vocabulary))
    write_json(folder / "config.json", read_json(folder / "config.json") | {"infill_layout": "prefix first"})
    return folder


def test_an_encoder_tells_the_likeliest_words_and_can_not_go_on(shoal: Shoal, encoder: Path) -> None:
    found = json.loads(shoal("generate", encoder, "--prompt", "the [MASK] sea", "--json").out)
    assert [len(guesses) for guesses in found["guesses"]] == [5]
    probabilities = [guess["probability"] for guess in found["guesses"][0]]
    assert probabilities == sorted(probabilities, reverse=True)
    shown = shoal("generate", encoder, "--prompt", "the [MASK] sea").out
    assert shown.startswith("the [MASK] sea\n    ") and shown.count("%") == 5
    assert "has no [MASK]" in shoal("generate", encoder, "--prompt", "the sea").error


def test_a_model_that_fills_in_shows_the_text_completed(shoal: Shoal, filler: Path) -> None:
    outcome = shoal("generate", filler, "--prompt", "the [MASK] sea", "--tokens", 6, "--json")
    found = json.loads(outcome.out)
    assert found["prompt"] == "the [MASK] sea"
    shown = shoal("generate", filler, "--prompt", "the [MASK] sea", "--tokens", 6).out
    assert "has 2 [MASK], and a model that fills in fills one" in shoal(
        "generate", filler, "--prompt", "[MASK] the [MASK]"
    ).error  # fmt: skip
    assert shown == f"the{found['text']} sea\n" or shown == f"the {found['text']} sea\n"


def test_a_model_is_evaluated_at_the_task_of_its_kind_or_a_given_one(shoal: Shoal, encoder: Path, filler: Path) -> None:
    Path("text.txt").write_text("the shoal swims with one mind\n" * 20)
    masked = json.loads(shoal("evaluate", encoder, "--text", "text.txt", "--json").out)
    assert masked["task"] == "masked" and 0 <= masked["eval_accuracy"] <= 1 and "eval_bpb" not in masked
    assert "% right" in shoal("evaluate", encoder, "--text", "text.txt").out
    infill = json.loads(shoal("evaluate", filler, "--text", "text.txt", "--task", "infill", "--json").out)
    assert infill["task"] == "infill" and infill["eval_bpb"] > 0
    assert "task 'causal' needs a model that sees only" in shoal(
        "evaluate", encoder, "--text", "text.txt", "--task", "causal"
    ).error  # fmt: skip
    assert f"and {filler} sees only what is before" in shoal(
        "evaluate", filler, "--text", "text.txt", "--task", "masked"
    ).error  # fmt: skip
