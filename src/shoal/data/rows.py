"""What a split is cut into: rows, one a sample, which stream, packing and grouping make in their own ways.

A row is found by its number alone, so whoever knows which samples to read needs nothing else.
"""

import hashlib
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import CorpusError
from shoal.data.partition import Positions
from shoal.data.sequences import Sequences, joined
from shoal.data.shards import TokenStream


class Rows(Protocol):
    """The samples of a split: `samples` rows of at most `context` tokens.

    `tokens`: real ones in all rows together. `targets`: tokens of text that are learnt from or predicted, once each.
    `fingerprint`: of all that gives a sample's number its meaning.
    """

    @property
    def samples(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def targets(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def read(self, samples: Positions, keys: NDArray[np.uint64]) -> Sequences:
        """These rows, in this order, as long as the longest of them needs; `keys` are handed on."""
        ...

    def lengths(self, samples: Positions) -> NDArray[np.int64]:
        """Positions that each of these rows takes when it is read by itself, padding included."""
        ...


class StreamRows:
    """Consecutive windows of a split: every position is real, and a window may begin inside a document.

    `border`: the token that ends documents, where attention and positions are to stop at it. `partial`: what is left at the
    split's end is a row too, padded. `stride`: how far a window is from the next, where they overlap; a token is a target in
    the first that has it alone, so all but the first `context` are predicted from `context − stride` tokens before at least.
    """

    def __init__(
        self, stream: TokenStream, context: int, border: int | None = None, partial: bool = False, stride: int | None = None
    ) -> None:
        self.stream, self.context, self.border, self.stride = stream, context, border, stride or context
        self.targets = stream.tokens - 1
        beyond = self.targets - context + self.stride
        self.samples = max(self.targets > 0, -(-beyond // self.stride)) if partial else beyond // self.stride
        if self.samples < 1:
            raise CorpusError(f"the split has {stream.tokens} tokens, too few for one window of {context + 1}")
        self.tokens = self.targets if partial else self.samples * context
        self.fingerprint = stream.fingerprint

    def read(self, samples: Positions, keys: NDArray[np.uint64]) -> Sequences:
        """Windows [rows, context]."""
        read = self._windows(samples * self.stride, keys)
        if self.stride == self.context:
            return read
        told = (samples > 0)[:, None] & (np.arange(self.context) < self.context - self.stride)
        return replace(read, following=np.where(told, -1, read.following))

    def _windows(self, starts: Positions, keys: NDArray[np.uint64]) -> Sequences:
        length = self.context + 1
        whole = starts + length <= self.stream.tokens
        if whole.all():
            return Sequences.of_windows(self.stream.windows(starts, length), keys, self.border)
        windows = np.full((len(starts), length), -1, dtype=np.int64)
        windows[whole] = self.stream.windows(starts[whole], length)
        for row in np.flatnonzero(~whole):
            rest = self.stream.windows(starts[row : row + 1], self.stream.tokens - int(starts[row]))
            windows[row, : rest.shape[1]] = rest[0]
        return Sequences.of_windows(windows, keys, self.border)

    def lengths(self, samples: Positions) -> NDArray[np.int64]:
        """All alike."""
        return np.full(len(samples), self.context, dtype=np.int64)


class MixedRows:
    """The rows of several corpora, numbered one after the other; all of one length."""

    def __init__(self, parts: tuple[Rows, ...]) -> None:
        self.parts, self.context = parts, parts[0].context
        self.edges = np.cumsum([0, *(part.samples for part in parts)])
        self.samples = int(self.edges[-1])
        self.tokens, self.targets = (sum(getattr(part, name) for part in parts) for name in ("tokens", "targets"))
        self.fingerprint = hash_of(*(part.fingerprint for part in parts))

    def read(self, samples: Positions, keys: NDArray[np.uint64]) -> Sequences:
        """Rows [samples, context]."""
        numbers = np.searchsorted(self.edges, samples, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        cuts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        read = joined(
            [self.parts[numbers[cut[0]]].read(samples[cut] - self.edges[numbers[cut[0]]], keys[cut]) for cut in cuts]
        )
        back = np.argsort(order)
        documents = None if read.documents is None else read.documents[back]
        return Sequences(read.tokens[back], read.following[back], read.keys[back], documents, corpora=numbers)

    def lengths(self, samples: Positions) -> NDArray[np.int64]:
        """All alike."""
        return np.full(len(samples), self.context, dtype=np.int64)


def empty_rows(like: Sequences, rows: int) -> Sequences:
    """Rows with nothing in them."""
    tokens = np.full((rows, like.tokens.shape[1]), -1, dtype=np.int64)
    documents = None if like.documents is None else np.full(tokens.shape, -1, dtype=np.int32)
    return Sequences(tokens, tokens, np.zeros(rows, dtype=np.uint64), documents)


def hash_of(*values: object) -> str:
    """A hash of what a sample's number depends on."""
    return hashlib.sha256(repr(values).encode()).hexdigest()
