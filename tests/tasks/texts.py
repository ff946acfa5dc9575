"""Tokenizers with what tasks need, and rows of text."""

from functools import cache

import numpy as np

from shoal.data.sequences import Sequences, row_keys
from shoal.data.special_tokens import FILL_IN, MASK, SENTINELS
from shoal.data.tokenizer import TextTokenizer, train_bpe
from tests.conftest import fixed_text


@cache
def tokenizer() -> TextTokenizer:
    """Byte-level BPE with the tokens of all tasks."""
    return train_bpe([fixed_text(200)], 420, [MASK, *FILL_IN, *SENTINELS])


def windows(rows: int, length: int, seed: int = 1) -> Sequences:
    """Rows of one text, each with the key of its own sample."""
    ids = np.resize(tokenizer().encode(fixed_text(400)), rows * length + 1)
    cut = np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::length][:rows].copy()
    samples = np.arange(rows, dtype=np.int64)
    return Sequences.of_windows(cut, row_keys(seed, np.zeros_like(samples), samples))
