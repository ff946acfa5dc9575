"""Whole documents packed into rows: each sees itself alone, few positions are padding, and few documents are cut.

What is longer than a row is cut into full rows; the rests and the short documents are packed *best-fit decreasing*: the
longest first, each into the fullest row that still has room (Ding et al. 2024, arXiv:2404.10830). Where texts are joined and
cut into windows instead, most begin in the middle; here a document is cut only where it can't fit.

The plan is a pure function of the corpus and the settings. Pieces of equal length are placed together, so packing takes
about `context` × some steps however many documents there are: a second for a million. It holds 28 bytes a document.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shoal.data.partition import Positions
from shoal.data.pieces import CutDocuments, extra_positions, interleaved
from shoal.data.rows import hash_of
from shoal.data.sequences import Sequences


class PackedRows:
    """Samples are the full pieces, in the corpus's order, then the packed rows."""

    def __init__(self, cut: CutDocuments) -> None:
        self.cut, self.context = cut, cut.context
        documents = np.flatnonzero(cut.rests)
        sizes = cut.rests[documents] + extra_positions(cut.framing)
        rows = best_fit_decreasing(sizes, cut.context)
        order = np.lexsort((-sizes, rows))
        kind = np.int32 if len(cut.rests) < 1 << 31 else np.int64
        self.documents = documents[order].astype(kind)
        self.edges = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.bincount(rows))])
        self.samples = cut.full + len(self.edges) - 1
        self.tokens, self.targets = cut.tokens, cut.targets

    @cached_property
    def fingerprint(self) -> str:
        """Of the text, and how it is cut and packed."""
        return hash_of("packed", self.cut.fingerprint)

    def read(self, samples: Positions, keys: NDArray[np.uint64]) -> Sequences:
        """Rows [samples, context]."""
        cut = self.cut
        packed = np.flatnonzero(samples >= cut.full)
        numbers = samples[packed] - cut.full
        counts = np.ones(len(samples), dtype=np.int64)
        counts[packed] = self.edges[numbers + 1] - self.edges[numbers]
        rows = np.repeat(np.arange(len(samples)), counts)
        from_packed = samples[rows] >= cut.full
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self.edges[samples[rows[from_packed]] - cut.full] + within[from_packed]
        full, rests = samples[rows[~from_packed]], self.documents[places].astype(np.int64)
        merged = interleaved(from_packed, cut.rest_pieces(rests), cut.full_pieces(full))
        return cut.lay(merged, rows, keys, self.context)

    def lengths(self, samples: Positions) -> NDArray[np.int64]:
        """All are padded to the context."""
        return np.full(len(samples), self.context, dtype=np.int64)


def best_fit_decreasing(sizes: NDArray[np.integer], capacity: int) -> NDArray[np.int64]:
    """The row of each piece, the longest placed first, each in the fullest row with room (a new one where there is none).

    Rows with equal room are alike, so pieces of one size fill them by the batch: rows are kept by their free positions, and
    those of the least sufficient room take as many pieces each as go in.
    """
    order = np.argsort(-sizes, kind="stable")
    falling = -sizes[order]
    rows = np.empty(len(sizes), dtype=np.int64)
    free: dict[int, list[NDArray[np.int64]]] = {}
    rooms, opened, placed = 0, 0, 0  # `rooms`: a bit for each number of free positions that some row has
    while placed < len(order):
        size = -int(falling[placed])
        last = int(np.searchsorted(falling, -size, side="right"))
        while placed < last:
            above = rooms >> size
            room = size + (above & -above).bit_length() - 1 if above else capacity
            each = room // size
            wanted = -(-(last - placed) // each)
            if above:
                chunk = free[room].pop()
                if len(chunk) > wanted:
                    free[room].append(chunk[:-wanted])
                    chunk = chunk[-wanted:]
                if not free[room]:
                    rooms &= ~(1 << room)
            else:
                chunk = np.arange(opened, opened + wanted)
                opened += wanted
            taken = np.repeat(chunk, each)[: last - placed]
            rows[order[placed : placed + len(taken)]] = taken
            placed += len(taken)
            whole, over = divmod(len(taken), each)
            for used, left in ((chunk[:whole], room - each * size), (chunk[whole : whole + 1], room - over * size)):
                if len(used) and left:
                    free.setdefault(left, []).append(used)
                    rooms |= 1 << left
    return rows
