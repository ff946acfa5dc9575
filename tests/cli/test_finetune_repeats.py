"""Several runs of one recipe: seeds, search, varied texts."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.core.model_directory import write_model_directory
from shoal.data.wordpiece import train_wordpiece
from shoal.models import hugging_face
from tests.cli.conftest import Shoal
from tests.models.shapes import BERT, random_model

FAST = ("--train.compile", "off", "--train.global_batch", "8", "--train.epochs", "1", "--quiet", "--json")


@pytest.fixture
def given(tmp_path: Path) -> tuple[Any, ...]:
    """A random BERT with words of its own, and examples."""
    tokenizer = train_wordpiece(["a good film of good people", "a bad film of bad people"] * 20, 39, ["[MASK]"])
    config = replace(BERT, vocabulary=tokenizer.vocabulary)
    model = random_model(config, scale=0.1)
    weights = hugging_face.weights_to_hugging_face(model)
    write_model_directory(tmp_path / "bert", hugging_face.config_to_hugging_face(config), weights, tokenizer.write, "# A\n")
    lines = [{"text": f"a {word} film", "label": word, "n": number} for number in range(8) for word in ("good", "bad")]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("finetune", "--task", "classify", "--model", tmp_path / "bert", "--data", tmp_path / "e.jsonl")
    return (*words, "--examples.held_out_by", "tail", *FAST)


def test_seeds_give_mean_and_deviation_of_runs_that_are_kept(shoal: Shoal, given: tuple[Any, ...]) -> None:
    found = json.loads(shoal(*given, "--seeds", "2").out)
    results = [json.loads(Path(run, "result.json").read_text()) for run in found["runs"]]
    losses = [result["eval_loss"] for result in results]
    assert losses[0] != losses[1]
    assert found["figures"]["eval_loss"] == {
        "mean": statistics.mean(losses), "deviation": statistics.stdev(losses), "values": losses,
    }  # fmt: skip
    again = json.loads(shoal(*given, "--seeds", "2").out)
    finished = [json.loads(Path(run, "result.json").read_text())["finished"] for run in again["runs"]]
    assert finished == [result["finished"] for result in results]


def test_a_search_tries_what_the_recipe_says_and_goes_on(shoal: Shoal, given: tuple[Any, ...]) -> None:
    Path("recipe.yaml").write_text("search:\n  optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n")
    verb, *rest = given
    one = json.loads(shoal(verb, "recipe.yaml", *rest, "--search", "1").out)
    two = json.loads(shoal(verb, "recipe.yaml", *rest, "--search", "2").out)
    assert len(one["trials"]) == 1 and len(two["trials"]) == 2
    assert one["trials"][0] in two["trials"]
    rates = [trial["optimizer.learning_rate"] for trial in two["trials"]]
    assert rates[0] != rates[1] and all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert two["best"]["eval_accuracy"] == max(trial["eval_accuracy"] for trial in two["trials"])


def test_texts_are_varied_by_words_and_by_a_model(shoal: Shoal, given: tuple[Any, ...]) -> None:
    varied = ("--augment.share", "1.0", "--augment.deletion", "0.2", "--augment.masked", "0.3")
    plain, other = (json.loads(shoal(*given, *words).out) for words in ((), ("--overwrite", *varied)))
    assert other["loss"] != plain["loss"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--augment.swap", "0.1"), "'augment.share' is 0"),
        (("--augment.share", "0.5"), "no way is"),
        (("--seeds", "1"), "accepted: a whole number from 2"),
        (("--search", "0"), "accepted: a whole number above 0"),
        (("--seeds", "2", "--search", "2"), "give one"),
    ],
)
def test_what_makes_no_sense_is_refused(shoal: Shoal, given: tuple[Any, ...], words: tuple[str, ...], message: str) -> None:
    outcome = shoal(*given, *words)
    assert outcome.code == 2
    assert message in outcome.error
