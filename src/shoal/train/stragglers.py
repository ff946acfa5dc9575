"""Which rank holds up the others: all wait for the slowest at every step, and nobody sees it from outside.

Every rank adds its figures of the last step to the message of totals that ranks sum anyway: each has a row
of its own, so the sum is all rows. A rank's busy time is its step without the waiting for others; it is slow when that is
over 1.5 times the ranks' median, and named once when it was slow in 5 of the last 10 steps. The median is the lower one:
of two ranks the faster, or a rank would have to be three times slower than its only peer to be named.
"""

import statistics
from collections import deque
from collections.abc import Sequence

TOLD = ("step_seconds", "data_seconds", "sync_seconds", "wire_bytes")
"""What a rank tells of its last step: seconds in all, of reading data, of waiting; bytes sent."""

FIGURES = len(TOLD) + 1
"""Numbers in a rank's row: those, and 1 if its loss is not finite."""

SLOW = 1.5
WINDOW = 10
OFTEN = 5

LEAST_EXCESS = 0.01
"""Seconds a step below which a difference is the machine's noise, and nobody's loss."""


class Stragglers:
    """The last steps of all `size` ranks, as seen by one of them."""

    def __init__(self, rank: int, size: int) -> None:
        self.size = size
        self._start = rank * FIGURES
        self._last: tuple[float, ...] = (0.0,) * len(TOLD)
        self._seen: deque[tuple[int, list[float], list[float]]] = deque(maxlen=WINDOW)
        self._named: set[int] = set()

    def rows(self) -> list[float]:
        """What this rank adds to the totals: its own row, of the last step, and zeros for the others."""
        rows = [0.0] * (FIGURES * self.size)
        rows[self._start : self._start + len(TOLD)] = self._last
        return rows

    @property
    def place_of_fault(self) -> int:
        """Where among the rows this rank tells that its loss is not finite now."""
        return self._start + len(TOLD)

    def not_finite(self, rows: Sequence[float]) -> list[int]:
        """The ranks whose loss was not finite."""
        return [rank for rank, wrong in enumerate(rows[FIGURES - 1 :: FIGURES]) if wrong]

    def keep(self, step_seconds: float, data_seconds: float, sync_seconds: float, wire_bytes: int) -> None:
        """This rank's figures of the step that has just ended."""
        self._last = (step_seconds, data_seconds, sync_seconds, float(wire_bytes))

    def by_rank(self, rows: Sequence[float]) -> dict[str, list[float]] | None:
        """Each figure of the step before by rank, to four digits; None of one rank, and where no step was before."""
        if self.size == 1 or not all(rows[::FIGURES]):
            return None
        return {key: [float(f"{value:.4g}") for value in rows[kind::FIGURES]] for kind, key in enumerate(TOLD)}

    def find(self, rows: Sequence[float], step: int) -> list[str]:
        """All ranks' rows of `step` have come: what is to be told about ranks that have turned out slow."""
        seconds, data, waited = (rows[kind::FIGURES] for kind in range(3))
        if self.size == 1 or not all(seconds):
            return []  # the first step tells of none before it
        busy = [whole - idle for whole, idle in zip(seconds, waited, strict=True)]
        self._seen.append((step, busy, list(data)))
        found = [rank for rank in range(self.size) if rank not in self._named and len(self._slow_steps(rank)) >= OFTEN]
        self._named.update(found)
        return [self._describe(rank) for rank in found]

    def _slow_steps(self, rank: int) -> list[tuple[int, float, float, float]]:
        """(step, this rank's busy seconds, the median's, this rank's data seconds) where it was slow."""
        steps = ((step, busy[rank], statistics.median_low(busy), data[rank]) for step, busy, data in self._seen)
        return [
            (step, own, median, data) for step, own, median, data in steps if own > max(SLOW * median, median + LEAST_EXCESS)
        ]

    def _describe(self, rank: int) -> str:
        slow = self._slow_steps(rank)
        own, others, data = (statistics.fmean(row[kind] for row in slow) for kind in (1, 2, 3))
        # reading is only worth a word where it is why
        reading = f" ({data:.2g} s of it reading data)" if data > (own - others) / 2 else ""
        return (
            f"rank {rank} was {own / others:.1f}x slower than the median over steps {slow[0][0]}-{slow[-1][0]}: "
            f"busy {own:.2g} s a step{reading}, others {others:.2g} s"
        )
