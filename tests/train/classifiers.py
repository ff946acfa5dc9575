"""Small classifiers of every family, and sentences for them to sort."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, merged
from shoal.core.run_directory import RunDirectory
from shoal.data.tokenizer import TextTokenizer
from shoal.data.wordpiece import train_wordpiece
from shoal.models.config import TransformerConfig
from shoal.train.finetune import finetuning, finetuning_defaults
from shoal.train.run import Session, run_training
from tests.conftest import fixed_text
from tests.models.shapes import BERT, GPT2, LLAMA, MODERNBERT, QWEN3
from tests.serve.languages import write_language_model
from tests.tasks.texts import tokenizer as bpe

WIDE: dict[str, Any] = {"dim": 32, "heads": 4, "kv_heads": 4, "head_dim": 8, "context": 40}
"""Heads of a multiple of 8: rows are joined, as our attention kernel serves."""

NARROW: dict[str, Any] = {"context": 40}
"""Heads of 4: rows are padded."""

SHAPES: dict[str, TransformerConfig] = {
    "bert": BERT, "modernbert": MODERNBERT, "gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3,
}  # fmt: skip


@cache
def wordpiece() -> TextTokenizer:
    """BERT's kind, with `[CLS]` and `[SEP]`."""
    return train_wordpiece([fixed_text(200)], 80)


def tokenizer_of(family: str) -> TextTokenizer:
    """WordPiece for BERT, for the others byte-level BPE that says nothing of how texts are framed."""
    return wordpiece() if family == "bert" else bpe()


def write_base(folder: Path, family: str, shape: dict[str, Any] = WIDE) -> Path:
    """A model to start from, with random weights."""
    tokenizer = tokenizer_of(family)
    write_language_model(folder, tokenizer, replace(SHAPES[family], vocabulary=tokenizer.vocabulary, **shape))
    return folder


def sentences(pairs: bool = False, several: bool = False) -> list[dict[str, Any]]:
    """Sentences of one to eight words; the label says which of two words they have, or, of several, all that they have."""
    texts = [line for line in fixed_text(60).splitlines() if line]
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        words = text.lower().rstrip(".").split()[: 1 + number % 8]
        row: dict[str, Any] = {"text": " ".join(words)}
        if pairs and number % 3:
            row["text_b"] = texts[-1 - number]
        labels = [word for word in ("the", "shoal", "sea") if word in text.lower()]
        row["label"] = labels if several else "long" if len(words) > 4 else "short"
        rows.append(row)
    return rows


def write_sentences(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def finetune_recipe(base: Path, data: Path, **sections: Any) -> Recipe:
    """A run of three steps; sections are merged into it."""
    tree: dict[str, Any] = {
        "name": "small", "task": "classify",
        "model": {"init_from": str(base), "dropout": 0.0},
        "examples": {"train": [str(data)], "held_out": 0.3},
        "tuning": {"dropout": 0.0},
        "train": {"steps": 3, "epochs": 0.0, "global_batch": 5, "micro_batch": 2, "compile": "off", "device": "cpu"},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"kind": "constant", "warmup": 0.0},
    }  # fmt: skip
    tree = merged(tree, sections)
    return build_recipe(merged(finetuning_defaults(tree), tree))


def finetune(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Run it in this process; returns its result."""
    run = RunDirectory(folder)
    run.claim(resume=False, overwrite=False)
    result = run_training(recipe, Session(run, quiet=True), partial(finetuning, run=run))
    assert result is not None
    return result
