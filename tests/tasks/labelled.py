"""Labelled examples as a task reads them: rows of samples, and a tokenizer of words."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.core.recipe_file import build_recipe
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows, Layout
from shoal.data.examples.texts import framing_tokenizer
from shoal.data.tokenizer import TextTokenizer
from shoal.data.wordpiece import train_wordpiece
from shoal.tasks import LABELLED, Batch
from tests.conftest import fixed_text

CPU = torch.device("cpu")
CHINESE = "江泽民主席在北京会见美国客人。邓小平同志去上海了！"


@cache
def wordpiece() -> TextTokenizer:
    """WordPiece of few words, so that most fall into parts, and of some Chinese characters."""
    return train_wordpiece([fixed_text(200), CHINESE], 110)


def make_task(name: str, tokenizer: TextTokenizer, examples: Sequence[Example], length: int = 64, **settings: Any) -> Any:
    """The task as a recipe's section sets it."""
    recipe = build_recipe({"task": name, name: settings})
    return LABELLED[name](recipe, framing_tokenizer(tokenizer, causal=False), length, examples)


def batch_of(task: Any, examples: Sequence[Example], layout: Layout, causal: bool = False) -> Batch:
    """All samples of these examples, at once."""
    samples = [sample for example in examples for sample in task.samples(example)]
    rows = LabelledRows(samples, causal, layout)
    return task.batch(rows.read(np.arange(rows.samples), np.zeros(rows.samples, dtype=np.uint64)), CPU)


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """A text file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
