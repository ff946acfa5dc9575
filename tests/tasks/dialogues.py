"""Dialogues and pairs of answers in files, and a small decoder to learn them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, merged
from shoal.data.tokenizer import TextTokenizer
from shoal.train.finetune import finetuning_defaults
from tests.conftest import WORDS
from tests.models.shapes import QWEN3
from tests.serve.languages import write_language_model
from tests.tasks.texts import tokenizer


def write_decoder(folder: Path, words: TextTokenizer | None = None) -> Path:
    """A random model with the tokenizer of the tests."""
    words = words or tokenizer()
    write_language_model(folder, words, replace(QWEN3, vocabulary=words.vocabulary, context=64, head_dim=8))
    return folder


def phrase(start: int, length: int) -> str:
    """Some words of the text."""
    return " ".join(WORDS[(start + offset) % len(WORDS)] for offset in range(length))


def dialogues(count: int) -> list[dict[str, Any]]:
    """Rows with dialogues of one or two exchanges, some with a system's turn: the assistant goes on with the text."""
    rows = []
    for number in range(count):
        turns = [{"role": "system", "content": "Go on."}] if number % 3 == 0 else []
        for turn in range(1 + number % 2):
            start = number * 5 + turn * 3
            turns += [
                {"role": "user", "content": phrase(start, 2 + number % 3)},
                {"role": "assistant", "content": phrase(start + 2 + number % 3, 3)},
            ]
        rows.append({"messages": turns})
    return rows


def pairs(count: int) -> list[dict[str, Any]]:
    """Rows with a prompt in text, what follows it, and other letters."""
    return [
        {
            "prompt": phrase(number, 3),
            "chosen": phrase(number + 3, 2 + number % 2),
            "rejected": phrase(number * 7 + 11, 2 + number % 3)[::-1],
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tuning_recipe(task: str, model: Path, rows: Path, **sections: Any) -> Recipe:
    """A run of some steps over small batches."""
    tree: dict[str, Any] = {
        "task": task,
        "name": "tuned",
        "model": {"init_from": str(model)},
        "examples": {"train": [str(rows)], "held_out": 0.3},
        "train": {"steps": 5, "epochs": 0.0, "global_batch": 5, "micro_batch": 2, "compile": "off", "device": "cpu"},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"patience": 0, "every": 3},
        "chat": {"reply": 6},
    }
    tree = merged(tree, sections)
    return build_recipe(merged(finetuning_defaults(tree), tree))
