"""Rows of labelled examples: the pieces of some samples, joined end to end, or one a row and padded.

Joined, a batch is one row without padding, in which a piece sees nothing of the others: so a batch takes the time that its
real tokens take, whatever their lengths. That needs our attention kernel, which skips what nobody sees; where it does not
serve, pieces are padded to the longest of the batch, and batches are of similar lengths (`data.grouping`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shoal.data.partition import Positions
from shoal.data.sequences import Labels, Sequences

NO_TARGET = -100

Layout = Literal["joined", "padded"]

MULTIPLES: dict[Layout, int] = {"joined": 64, "padded": 4}
"""Rows are as long as a multiple of so many tokens: products of even sizes are faster, and padding costs."""


@dataclass(frozen=True)
class Piece:
    """A stretch of tokens that is read by itself.

    `tokens` [length], special ones included; `targets` [length]: what is to be told of each, -100 for nothing (None: of
    none); `segments` [length] (None: 0). `prefix`: of a decoder, the first tokens, which see each other both ways.
    `values`: by name, a number or an array of what the task knows of the piece; `computed`: the same of what a model has
    told of it, which is no part of the text, and may differ in its last bits from run to run.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64] | None = None
    segments: NDArray[np.int64] | None = None
    prefix: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    computed: Mapping[str, Any] = field(default_factory=dict)


Sample = tuple[Piece, ...]
"""What is read together: a piece, the windows of a long text, or two texts to be compared."""

Vary = Callable[[int, int], Sample]
"""A sample's number and a random key to the sample as it is read this time."""


class LabelledRows:
    """The samples of a split, of which `read` makes a batch; a `Rows` of which each sample is one."""

    def __init__(
        self,
        samples: Sequence[Sample],
        causal: bool,
        layout: Layout = "joined",
        vary: Vary | None = None,
    ) -> None:
        self.all, self.causal, self.layout, self.vary = samples, causal, layout, vary
        self.samples = len(samples)
        self.sizes = np.array([sum(len(piece.tokens) for piece in sample) for sample in samples], dtype=np.int64)
        self.context = max((len(piece.tokens) for sample in samples for piece in sample), default=1)
        self.tokens = self.targets = int(self.sizes.sum())
        self.fingerprint = _fingerprint(samples)

    def read(self, samples: Positions, keys: NDArray[np.uint64]) -> Sequences:
        """The pieces of these samples, in their order."""
        if self.vary is None:
            chosen = [self.all[number] for number in samples]
        else:
            chosen = [self.vary(int(number), int(key)) for number, key in zip(samples, keys, strict=True)]
        numbers = [int(number) for number, sample in zip(samples, chosen, strict=True) for _ in sample]
        return collate([piece for sample in chosen for piece in sample], numbers, keys, self.causal, self.layout)

    def lengths(self, samples: Positions) -> NDArray[np.int64]:
        """Tokens of each sample."""
        return self.sizes[samples]


def _fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of all that is learned from the samples; of what a model told of them (`computed`), nothing."""
    told = hashlib.sha256()
    for sample in samples:
        told.update(b"sample")
        for piece in sample:
            told.update(repr((len(piece.tokens), piece.prefix, sorted(piece.values.keys()))).encode())
            values = (np.asarray(piece.values[name]) for name in sorted(piece.values))
            for array in (piece.tokens, piece.targets, piece.segments, *values):
                told.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return told.hexdigest()


def collate(
    pieces: Sequence[Piece],
    samples: Sequence[int],
    keys: NDArray[np.uint64],
    causal: bool,
    layout: Layout = "joined",
) -> Sequences:
    """Rows of pieces, of the samples of these numbers."""
    lengths = np.array([len(piece.tokens) for piece in pieces], dtype=np.int64)
    multiple = MULTIPLES[layout]
    if layout == "joined":
        rows, width = 1, -(-int(lengths.sum()) // multiple) * multiple
        starts = np.cumsum(lengths) - lengths
    else:
        rows, width = len(pieces), -(-int(lengths.max()) // multiple) * multiple
        starts = np.arange(rows, dtype=np.int64) * width
    size = rows * width
    tokens = np.full(size, -1, dtype=np.int64)
    targets = np.full(size, NO_TARGET, dtype=np.int64)
    segments = np.zeros(size, dtype=np.int64)
    place = np.arange(size, dtype=np.int32) % width
    lows, ends = place.copy(), place + 1  # padding sees itself alone
    for piece, start, length in zip(pieces, starts.tolist(), lengths.tolist(), strict=True):
        its = slice(start, start + length)
        tokens[its] = piece.tokens
        if piece.targets is not None:
            targets[its] = piece.targets
        if piece.segments is not None:
            segments[its] = piece.segments
        begin = start % width
        lows[its] = begin
        if not causal:
            ends[its] = begin + length
        elif piece.prefix:
            ends[start : start + piece.prefix] = begin + piece.prefix
    known = [{**piece.values, **piece.computed} for piece in pieces]
    values = {name: np.stack([np.asarray(one[name]) for one in known]) for name in (known[0] if known else ())}
    shape = (rows, width)
    labels = Labels(
        targets.reshape(shape), segments.reshape(shape), lows.reshape(shape), ends.reshape(shape), starts, lengths,
        np.array(samples, dtype=np.int64), values,
    )  # fmt: skip
    nothing = np.full(shape, -1, dtype=np.int64)
    return Sequences(tokens.reshape(shape), nothing, np.resize(keys, rows), labels=labels)
