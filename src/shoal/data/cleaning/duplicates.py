"""Duplicates among all documents, in memory that a setting bounds.

Hashes lie on disk, a file a batch (`batches.py`); a document is a row of them, rows being numbered through all batches.
Equal hashes are found by sorting. Where they are too many to sort at once, they are divided by their value into parts,
and the files are read once a part: so nothing is written, and equal hashes always meet. Beside that, memory holds one
byte a document; the groups of near-duplicates lie in a mapped file.

Exact: of documents with the same 128-bit hash, the first stays. Near: rows of the same band are candidates, first with
each other and each with its neighbour, and are joined if their estimated similarity reaches the limit; of each group that
results, the first document stays. Which documents are joined does not depend on the order in which that is found out.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ShoalError
from shoal.data.cleaning.signatures import similarity

KEPT, EXACT, NEAR, CONTAMINATED = range(4)

# A sort holds keys, rows, their order, and copies of these.
_BYTES_PER_ROW = 64
_PAIRS_TOGETHER = 20_000

Rows = NDArray[np.int64]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Signatures:
    """The hashes of all kept documents, in a folder of batches with so many rows each."""

    directory: Path
    counts: tuple[int, ...]
    further: Mapping[int, NDArray[np.uint64]] = field(default_factory=dict)
    """By row of an enormous document: a hash `[2]` of the pieces that follow the first."""

    @cached_property
    def starts(self) -> Rows:
        """The first row of each batch, and, last, the number of rows."""
        return np.cumsum([0, *self.counts], dtype=np.int64)

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.starts[-1])

    def load(self, batch: int, ending: str) -> NDArray[np.uint64]:
        """A batch's array, mapped."""
        return np.load(self.directory / f"{batch:05}.{ending}.npy", mmap_mode="r", allow_pickle=False)

    def text_hashes(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """(first row, hashes `[2, rows]`) of each batch."""
        own = np.array(sorted(self.further), dtype=np.int64)
        for batch, start in enumerate(self.starts[:-1].tolist()):
            hashes = np.array(self.load(batch, "rows")[2:])
            for row in own[(own >= start) & (own < start + hashes.shape[1])].tolist():
                hashes[:, row - start] ^= self.further[row]
            yield start, hashes

    def band_hashes(self, band: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """(first row, hashes `[1, rows]`) of each batch."""
        for batch, start in enumerate(self.starts[:-1].tolist()):
            yield start, np.array(self.load(batch, "bands")[band : band + 1])

    def values(self, rows: Rows) -> NDArray[np.uint8]:
        """The bytes `[rows, values]` by which documents are compared; rows may repeat, in any order."""
        unique, places = np.unique(rows, return_inverse=True)
        batches = np.searchsorted(self.starts, unique, side="right") - 1
        found = [
            self.load(batch, "values")[unique[batches == batch] - self.starts[batch]]
            for batch in np.unique(batches).tolist()
        ]
        return np.concatenate(found)[places].astype(np.uint8, copy=False)


def mark_exact(signatures: Signatures, marks: NDArray[np.uint8], memory: int, report: Callable[[float], None]) -> list[Pair]:
    """Mark every document whose text was there before; returns the first (document, the same before) as examples."""
    parts = _parts(signatures.rows, memory)
    examples: list[Pair] = []
    for part in range(parts):
        hashes, rows = _gather(signatures.text_hashes(), marks, part, parts)
        order = np.lexsort((rows, hashes[1], hashes[0]))
        hashes, rows = hashes[:, order], rows[order]
        same = (hashes[:, 1:] == hashes[:, :-1]).all(axis=0)
        again = np.flatnonzero(same) + 1
        marks[rows[again]] = EXACT
        firsts = np.flatnonzero(np.concatenate(([True], ~same)))
        known = rows[firsts[np.searchsorted(firsts, again, side="right") - 1]]
        earliest = np.argsort(rows[again])[:3]
        examples += zip(rows[again][earliest].tolist(), known[earliest].tolist(), strict=True)
        report((part + 1) / parts)
    return sorted(examples)[:3]


def mark_near(
    signatures: Signatures,
    bands: int,
    limit: float,
    marks: NDArray[np.uint8],
    memory: int,
    report: Callable[[float], None],
) -> list[Pair]:
    """Mark every document that is similar to an earlier one, or to one that is; returns the first such pairs."""
    if not signatures.rows:
        return []
    path = signatures.directory / "groups.bin"
    groups = _Groups(_zeros_on_disk(path, signatures.rows))
    parts = _parts(signatures.rows, memory)
    for band in range(bands):
        for part in range(parts):
            hashes, rows = _gather(signatures.band_hashes(band), marks, part, parts)
            for left, right in _candidates(hashes[0], rows):
                apart = np.fromiter(map(groups.differ, left.tolist(), right.tolist()), bool, len(left))
                left, right = left[apart], right[apart]
                if len(left):
                    alike = similarity(signatures.values(left), signatures.values(right)) >= limit
                    for pair in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
                        groups.join(*pair)
            report((band + (part + 1) / parts) / bands)
    examples = groups.mark(marks)
    path.unlink()
    return examples


def _zeros_on_disk(path: Path, count: int) -> NDArray[np.int64]:
    try:
        with path.open("wb") as file:
            # a full disk is an error here; writing to a mapped file that has no room would end the process
            os.posix_fallocate(file.fileno(), 0, 8 * count) if hasattr(os, "posix_fallocate") else file.truncate(8 * count)
    except OSError as error:
        raise ShoalError(f"{path}: could not be written: {error.strerror or error}") from error
    # a plain view: single numbers are read, for which a `memmap` object takes three times as long
    return np.asarray(np.memmap(path, dtype=np.int64, mode="r+", shape=(count,)))


def _parts(rows: int, memory: int) -> int:
    return max(1, -(-rows * _BYTES_PER_ROW // memory))


def _gather(
    batches: Iterator[tuple[int, NDArray[np.uint64]]], marks: NDArray[np.uint8], part: int, parts: int
) -> tuple[NDArray[np.uint64], Rows]:
    """Hashes `[columns, rows]` of this part and their rows, of documents that are not marked."""
    hashes, rows = [], []
    for start, found in batches:
        wanted = marks[start : start + found.shape[1]] == KEPT
        if parts > 1:
            wanted &= found[0] % np.uint64(parts) == part
        hashes.append(found[:, wanted])
        rows.append(np.flatnonzero(wanted) + start)
    return np.concatenate(hashes, axis=1), np.concatenate(rows)


def _candidates(hashes: NDArray[np.uint64], rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows with equal hashes, some thousand at a time: each with the first of its group, and with its neighbour."""
    order = np.argsort(hashes, kind="stable")
    hashes, rows = hashes[order], rows[order]
    same = hashes[1:] == hashes[:-1]
    again = np.flatnonzero(same) + 1
    firsts = np.flatnonzero(np.concatenate(([True], ~same)))
    group = firsts[np.searchsorted(firsts, again, side="right") - 1]
    for start in range(0, len(again), _PAIRS_TOGETHER):
        these = again[start : start + _PAIRS_TOGETHER]
        yield rows[group[start : start + _PAIRS_TOGETHER]], rows[these]
        yield rows[these - 1], rows[these]


class _Groups:
    """Which rows belong together; a group is named after its first row (union-find; 0 stands for a row by itself)."""

    def __init__(self, above: NDArray[np.int64]) -> None:
        self.above = above  # how far above a row its group's next row is

    def first(self, row: int) -> int:
        """The first row of a row's group."""
        above = self.above
        start = row
        while step := int(above[row]):
            row -= step
        while start > row:  # the next search is short
            step = int(above[start])
            above[start] = start - row
            start -= step
        return row

    def differ(self, left: int, right: int) -> bool:
        """Whether two rows are in different groups."""
        return self.first(left) != self.first(right)

    def join(self, left: int, right: int) -> None:
        """Make one group of two."""
        left, right = sorted((self.first(left), self.first(right)))
        self.above[right] = right - left

    def mark(self, marks: NDArray[np.uint8]) -> list[Pair]:
        """Mark all rows but the first of each group; returns the first of these, with their groups' first."""
        examples: list[Pair] = []
        for start in range(0, len(self.above), 1_000_000):
            rows = np.flatnonzero(self.above[start : start + 1_000_000]) + start
            marks[rows] = NEAR
            examples += [(row, self.first(row)) for row in rows[: 3 - len(examples)].tolist()]
        return examples
