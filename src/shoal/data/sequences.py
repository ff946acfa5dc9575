"""What one forward pass reads: rows of tokens, on their way from the corpus to the task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shoal.core.seeds import derive_seed
from shoal.data.partition import mix


@dataclass(frozen=True)
class Framing:
    """How a task wants documents laid into rows that are packed or grouped (rows of the stream are windows, whatever).

    `shifted`: each token with the one that follows. A document begins with `begin`, and its last target is its own
    end-of-text; where it is cut, the first input is the token before the cut: every token is a target once.
    `whole`: `begin`, text, `end` make a piece, and nothing follows. `spare`: further positions a piece that are left free at
    the row's end, for what the task adds. `begin` and `end` None: the end-of-text.
    """

    kind: Literal["shifted", "whole"] = "shifted"
    begin: int | None = None
    end: int | None = None
    spare: int = 0


@dataclass(frozen=True)
class Labels:
    """What is known of rows beside their text, which consists of pieces: one or more of each sample.

    `targets` [rows, length]: a target a token, -100 where there is none. `segments` [rows, length]: the kind of text that a
    token belongs to. `lows`, `ends` [rows, length]: which places of its row a token sees, `ends` exclusive. `starts`,
    `lengths` [pieces]: where a piece begins in the flattened rows, and its tokens. `samples` [pieces]: of which sample it
    is. `values`: by name, a number or an array a piece.
    """

    targets: NDArray[np.int64]
    segments: NDArray[np.int64]
    lows: NDArray[np.int32]
    ends: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    samples: NDArray[np.int64]
    values: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Sequences:
    """Rows of tokens, each of one document or several; -1 where there is none.

    `tokens` [rows, length], and `following` each of them in its document (-1: nothing to predict; everywhere where the
    framing is `whole`). `documents` [rows, length]: a number a document, which differs where one ends and the next begins in
    a row, -1 for padding, which stands at the end; None where rows are read as one text, whatever they hold.
    `labels`: of rows of labelled examples (None: rows of text, or rows in which nothing is). `corpora` [rows]: of several
    corpora, the number of the one that a row is of (None: there is one).
    `keys` [rows]: what is random about a row depends on this alone, hence on seed, epoch and sample, not on ranks.
    """

    tokens: NDArray[np.int64]
    following: NDArray[np.int64]
    keys: NDArray[np.uint64]
    documents: NDArray[np.int32] | None = None
    labels: Labels | None = None
    corpora: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """How many rows."""
        return len(self.tokens)

    @classmethod
    def of_windows(
        cls, windows: NDArray[np.int64], keys: NDArray[np.uint64] | None = None, border: int | None = None
    ) -> "Sequences":
        """Rows from windows [rows, length + 1] of a stream. `border`: the token with which a document ends, if it counts.

        It stands at the head of the next document, as what this is predicted from: so every token stays a target, and
        none depends on another document. Padding, -1 at the end, is read by nobody.
        """
        tokens, following = windows[:, :-1], windows[:, 1:]
        documents = None
        if border is not None or (windows[:, -1:] < 0).any():
            begins = tokens == (-2 if border is None else border)
            documents = np.where(tokens < 0, np.int32(-1), np.cumsum(begins, axis=1, dtype=np.int32))
        return cls(tokens, following, np.zeros(len(windows), dtype=np.uint64) if keys is None else keys, documents)


def joined(parts: list[Sequences]) -> Sequences:
    """Rows of equal length, one below the other; where only some tell documents apart, the others' rows are one each."""
    documents = None
    if any(part.documents is not None for part in parts):
        told = (np.where(p.tokens < 0, np.int32(-1), np.int32(0)) if p.documents is None else p.documents for p in parts)
        documents = np.concatenate(list(told))
    tokens, following, keys = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "following", "keys")
    )
    return Sequences(tokens, following, keys, documents)


def row_keys(seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The random key of each (epoch, sample)."""
    keys = np.empty(len(samples), dtype=np.uint64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        keys[chosen] = mix(samples[chosen].astype(np.uint64) ^ np.uint64(derive_seed(seed, "row", int(epoch))))
    return keys
