"""One document a row, padded, and rows of similar length together, so that little is padding.

Samples are numbered by their length. So the order of an epoch needs no lengths, only numbers, and is a pure function of
(seed, epoch) as any other: the shuffled epoch is cut into pools of `POOL` groups, each pool is sorted, cut into groups, and
its groups are shuffled. A group is a step's rows; neighbours in a pool of 64 groups differ little in length, and which
documents meet in a pool is chance. In a group rows stay sorted: ranks that take every Nth get equal work, and micro-batches
like lengths.

Rows are as long as the longest of their micro-batch, rounded up: to multiples of 8, above 128 to eight lengths an octave.
So compiled code sees 24 shapes up to 256 tokens and 40 up to 1,024, and rounding adds a sixteenth on average.

The price, beside the padding: steps have different numbers of tokens, and short documents meet short ones.
"""

from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from shoal.core.seeds import derive_seed
from shoal.data.partition import Positions, mix, shuffled
from shoal.data.pieces import CutDocuments, extra_positions, interleaved
from shoal.data.rows import hash_of
from shoal.data.sequences import Sequences

POOL = 64
"""Groups that are sorted together, at most."""

POOLS = 4
"""Pools that an epoch of few samples is cut into, so that they still meet others in every epoch."""

SHORTEST = 8
"""Rows are padded to a multiple of this."""


class GroupedRows:
    """Samples are pieces, numbered from the shortest to the longest; those that fill a row come last."""

    def __init__(self, cut: CutDocuments) -> None:
        self.cut, self.context = cut, cut.context
        documents = np.flatnonzero(cut.rests)
        kind = np.int32 if len(cut.rests) < 1 << 31 else np.int64
        self.documents = documents[np.argsort(cut.rests[documents], kind="stable")].astype(kind)
        self.samples = len(documents) + cut.full
        self.tokens, self.targets = cut.tokens, cut.targets

    @cached_property
    def fingerprint(self) -> str:
        """Of the text, and how it is cut and numbered."""
        return hash_of("grouped", self.cut.fingerprint)

    def read(self, samples: Positions, keys: NDArray[np.uint64]) -> Sequences:
        """Rows [samples, a little more than the longest]."""
        full = samples >= len(self.documents)
        numbers, rests = samples[full] - len(self.documents), self._rests(samples[~full])
        pieces = interleaved(full, self.cut.full_pieces(numbers), self.cut.rest_pieces(rests))
        length = int(self.lengths(samples).max())
        return self.cut.lay(pieces, np.arange(len(samples)), keys, length)

    def lengths(self, samples: Positions) -> NDArray[np.int64]:
        """Positions of each, rounded up."""
        sizes = np.full(len(samples), self.context, dtype=np.int64)
        rests = samples < len(self.documents)
        sizes[rests] = self.cut.rests[self._rests(samples[rests])] + extra_positions(self.cut.framing)
        return np.minimum(padded(sizes), self.context)

    def _rests(self, samples: Positions) -> Positions:
        return self.documents[samples].astype(np.int64)


def padded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each length rounded up, to one of few."""
    octave = np.ceil(np.log2(np.maximum(sizes, 2))).astype(np.int64)  # exact: powers of two are
    step = np.maximum(SHORTEST, np.int64(1) << np.maximum(octave - 4, 0))
    return -(-sizes // step) * step


def grouped_at(positions: Positions, samples: int, seed: int, group: int, pool: int = POOL) -> Positions:
    """The sample that each position reads: every one of `samples` exactly once an epoch, those of a group alike in number.

    `pool`: groups that are sorted together. Groups begin at multiples of `group`, whatever the epoch, as steps do; where an
    epoch ends, two share one.
    """
    epochs, pools = positions // samples, positions // (group * pool)
    result = np.empty_like(positions)
    both = np.stack([epochs, pools], axis=1)
    kinds, which = np.unique(both, axis=0, return_inverse=True)
    order = np.argsort(which, kind="stable")
    edges = np.searchsorted(which[order], np.arange(len(kinds) + 1))
    for number, (epoch, its) in enumerate(kinds.tolist()):
        here = order[edges[number] : edges[number + 1]]
        first, pooled = _pool(epoch, its, samples, seed, group, pool)
        result[here] = pooled[positions[here] - first]
    return result


def pool_of(samples: int, group: int) -> int:
    """Groups to sort together, where an epoch may be short."""
    return min(POOL, max(1, samples // (POOLS * group)))


@lru_cache(maxsize=8)
def _pool(epoch: int, its: int, samples: int, seed: int, group: int, pool: int) -> tuple[int, Positions]:
    """(first position of the part of a pool that lies in an epoch, the sample at each of its positions)."""
    first, end = max(epoch * samples, its * pool * group), min((epoch + 1) * samples, (its + 1) * pool * group)
    places = np.arange(first, end, dtype=np.int64)
    chosen = np.sort(shuffled(places - epoch * samples, samples, derive_seed(seed, "order", epoch)))
    numbers = places // group
    sizes = np.bincount(numbers - numbers[0])
    shuffle = np.argsort(mix(np.arange(len(sizes), dtype=np.uint64) ^ np.uint64(derive_seed(seed, "groups", epoch, its))))
    begins = np.empty(len(sizes), dtype=np.int64)  # where in the sorted pool each group's samples begin
    begins[shuffle] = np.cumsum(sizes[shuffle]) - sizes[shuffle]
    within = places - first - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return first, chosen[np.repeat(begins, sizes) + within]
