"""Entities and answers on two ranks: the losses and figures of one, though ranks hold different numbers of targets."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import World
from shoal.train.finetune import finetuning
from shoal.train.loop import train
from shoal.train.setup import build
from shoal.train.telemetry import read_metrics
from tests.conftest import fixed_text
from tests.ranks import alone, run_ranks
from tests.train.classifiers import finetune_recipe, write_base


@pytest.fixture(autouse=True, scope="module")
def unmeasured() -> Iterator[None]:
    """No time for what MFU is measured against."""
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        yield


def write_data(folder: Path) -> dict[str, Path]:
    """Sentences of one to eight words, some names; and questions of which some have no answer, in windows of 16 tokens."""
    texts = [line.rstrip(".").split() for line in fixed_text(40).splitlines() if line]
    tagged = [words[: 1 + number % 8] for number, words in enumerate(texts)]
    rows = [{"tokens": words, "tags": ["B-X" if "s" in word else "O" for word in words]} for words in tagged]
    asked: list[dict[str, Any]] = []
    for number, words in enumerate(texts[:20]):
        context = " ".join(words * (1 + number % 3))
        answers = [{"text": words[2], "answer_start": context.index(words[2])}] if number % 3 else []
        asked.append({"context": context, "question": words[0], "answers": answers})
    files = {"tag": rows, "answer": asked}
    for name, examples in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    return {name: folder / f"{name}.jsonl" for name in files}


def trained(world: World, recipes: dict[str, Recipe], folder: Path) -> dict[str, tuple[list[float], dict[str, Any]]]:
    """(losses, last evaluation) of each."""
    torch.set_num_threads(1)
    found = {}
    for name, recipe in recipes.items():
        run = RunDirectory(folder / name)
        run.root.mkdir(parents=True, exist_ok=True)
        parts = build(recipe, run, world, resume=False, quiet=True, gather=partial(finetuning, run=run))[0]
        try:
            evaluated = train(parts)
        finally:
            parts.telemetry.close()
        losses = [record["loss"] for record in read_metrics(run.metrics)[0]] if world.is_main else []
        found[name] = losses, evaluated
    return found


def test_two_ranks_learn_and_measure_as_one_does(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "bert")
    recipes = {
        name: finetune_recipe(base, data, task=name, examples={"length": 16, "held_out": 0.4}, evaluation={"every": 3})
        for name, data in write_data(tmp_path).items()
    }
    one = trained(alone(), recipes, tmp_path / "one")
    two = run_ranks(2, trained, recipes, tmp_path / "two")
    for name, (losses, evaluated) in two[0].items():
        expected, reference = one[name]
        assert losses == pytest.approx(expected, rel=1e-5), name
        assert evaluated.keys() == reference.keys()
        for figure, value in reference.items():
            if figure not in ("eval_seconds", "eval_loss"):
                assert evaluated[figure] == two[1][name][1][figure] == value, figure
        assert evaluated["eval_loss"] == pytest.approx(reference["eval_loss"], rel=1e-5)
    assert one["tag"][1]["eval_targets"] > one["answer"][1]["eval_targets"] > 5
