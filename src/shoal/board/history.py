"""A run's past in bounded room: equal numbers of records are one bucket, which keeps lowest, highest and mean of each key.

When the buckets are full, pairs of them become one: a run of a million steps takes the room of one of some thousands, every
record is looked at once, and no peak is ever lost. Rows for a chart are made of buckets, a power of two of records each, so
that they stay the same rows while the run grows and only new ones travel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAPACITY = 4096
"""Buckets of a run, at most; a power of two."""

MOST_KEYS = 128
"""Keys of a run, at most; the first ones."""

LOW, HIGH, TOTAL, COUNT = range(4)

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """What is drawn, from row `first` on: of each key lowest, highest and mean; NaN where no record has it."""

    first: int
    per_row: int
    """Records of a row."""
    records: int
    """Records up to the end of the last row."""
    columns: dict[str, tuple[Numbers, Numbers, Numbers]]

    def tree(self, axes: tuple[str, ...]) -> dict[str, Any]:
        """As JSON: of `axes` only where a row ends; `low` and `high` only where they can differ from `mean`."""
        told: dict[str, Any] = {"first": self.first, "per_row": self.per_row, "records": self.records, "keys": {}}
        for key, (low, high, mean) in self.columns.items():
            if not len(mean):
                continue
            if key in axes:
                told["keys"][key] = {"mean": _listed(high, 12)}
            else:
                told["keys"][key] = {"mean": _listed(mean)}
                if self.per_row > 1:
                    told["keys"][key] |= {"low": _listed(low), "high": _listed(high)}
        return told


@dataclass
class History:
    """Records in order, each with the place in its file where it begins."""

    capacity: int = CAPACITY
    width: int = 1
    """Records of a bucket."""
    count: int = 0
    """Records in all."""
    offsets: list[int] = field(default_factory=list)
    """Where each bucket begins in the file."""
    _columns: dict[str, Numbers] = field(default_factory=dict)
    _open: dict[str, list[float]] = field(default_factory=dict)
    """The last bucket's numbers by key: plain ones, as most records change nothing else."""

    def add(self, offset: int, values: Mapping[str, float]) -> None:
        """Take in the next record."""
        if self.count % self.width == 0:
            self._settle()
            self._open = {}
            if len(self.offsets) == self.capacity:
                self._halve()
            self.offsets.append(offset)
        self.count += 1
        for key, value in values.items():
            kept = self._open.get(key)
            if kept is None:
                if len(self._open) < MOST_KEYS:
                    self._open[key] = [value, value, value, 1]
                continue
            if value < kept[LOW]:
                kept[LOW] = value
            if value > kept[HIGH]:
                kept[HIGH] = value
            kept[TOTAL] += value
            kept[COUNT] += 1

    def rows(self, per_row: int, first: int = 0, end: int | None = None) -> Rows:
        """Rows of `per_row` records, or of a bucket's where that is more, from record `first * per_row` to before `end`."""
        self._settle()
        per_row, end = max(per_row, self.width), self.count if end is None else end
        group = per_row // self.width
        start, stop = first * group, -(-end // self.width)
        columns = {key: _joined(column[:, start:stop], group, stop - start) for key, column in self._columns.items()}
        return Rows(first, per_row, end, columns)

    def between(self, axis: str, start: float, end: float) -> tuple[int, int]:
        """The buckets (from, to before) that hold the records whose `axis`, which rises, is in there, and one beside."""
        self._settle()
        column = self._columns.get(axis)
        if column is None:
            return 0, 0
        ends = column[HIGH, : len(self.offsets)]
        first, last = np.searchsorted(ends, (start, end))
        return max(0, int(first) - 1), min(len(self.offsets), int(last) + 2)

    def last(self, key: str, bucket: int) -> float:
        """The highest value of a key in a bucket; 0 where there is none."""
        column = self._columns.get(key)
        value = float(column[HIGH, bucket]) if column is not None and 0 <= bucket < column.shape[1] else np.nan
        return 0.0 if np.isnan(value) else value

    def _settle(self) -> None:
        """Put the last bucket's numbers among the others'."""
        bucket = len(self.offsets) - 1
        for key, kept in self._open.items():
            column = self._columns.get(key)
            if column is None and len(self._columns) >= MOST_KEYS:
                continue
            if column is None or column.shape[1] <= bucket:
                column = self._grown(key, column, bucket)
            column[:, bucket] = kept

    def _grown(self, key: str, column: Numbers | None, bucket: int) -> Numbers:
        size = min(self.capacity, max(16, 2 * bucket))
        grown = np.full((4, size), np.nan)
        grown[TOTAL:] = 0.0
        if column is not None:
            grown[:, : column.shape[1]] = column
        self._columns[key] = grown
        return grown

    def _halve(self) -> None:
        for key, column in self._columns.items():
            half = np.full((4, self.capacity), np.nan)
            half[TOTAL:] = 0.0
            pairs = _reduced(column, 2)
            half[:, : pairs.shape[1]] = pairs
            self._columns[key] = half
        self.offsets = self.offsets[::2]
        self.width *= 2


def per_row_of(records: int, rows: int) -> int:
    """How many records a row must have, a power of two, so that so many records are no more than so many rows."""
    size = 1
    while size * rows < records:
        size *= 2
    return size


def _joined(column: Numbers, group: int, buckets: int) -> tuple[Numbers, Numbers, Numbers]:
    """Lowest, highest and mean of rows of `group` buckets; a column may end before the last bucket."""
    whole = np.full((4, -(-buckets // group) * group), np.nan)
    whole[TOTAL:] = 0.0
    whole[:, : column.shape[1]] = column
    low, high, total, count = _reduced(whole, group)
    return low, high, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _reduced(column: Numbers, group: int) -> Numbers:
    parts = column.reshape(4, -1, group)
    low, high = np.fmin.reduce(parts[LOW], axis=1), np.fmax.reduce(parts[HIGH], axis=1)
    return np.stack((low, high, parts[TOTAL].sum(1), parts[COUNT].sum(1)))


def _listed(values: Numbers, digits: int = 6) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
