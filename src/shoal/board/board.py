"""All runs of some folders: found, read as they grow, and told to pages in no more words than are new."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.board.history import CAPACITY, History, Rows, per_row_of
from shoal.board.past import AXES, read_part
from shoal.board.run import Run, run_id, text_of
from shoal.core.errors import InputError

POINTS = 1024
"""Rows of a chart, at most: about one a pixel."""

AT_ONCE = 8 << 20
"""Bytes of metrics that one question may cost; what is left is read for the next ones."""

MOST_DETAIL = 16 << 20
"""Bytes that are read again to look at a part of a run more closely."""

DEEPEST = 3
"""Folders below a given one in which runs are looked for."""

MOST_RUNS = 1000
MOST_FOLDERS = 20_000

SECONDS_BETWEEN_SEARCHES = 3.0
SHARE_OF_SEARCHING = 0.05
"""Of the time, at most, where folders are so many that looking into them takes long."""


@dataclass(frozen=True)
class Cursor:
    """What a page has of a run, of its metrics' so-many-th beginning."""

    generation: int
    training: tuple[int, int]
    """(records a row, records)."""
    evaluations: tuple[int, int]


@dataclass
class Board:
    """The runs of `roots`, each a run's folder or a folder of them."""

    roots: Sequence[Path]
    runs: dict[str, Run] = field(default_factory=dict)
    """By id."""
    told: list[str] = field(default_factory=list)
    """What people should know of the search."""
    _search_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """`InputError` where a root is no folder."""
        for root in self.roots:
            if not root.is_dir():
                raise InputError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; give folders of runs")
        self.search()

    def search(self) -> None:
        """Find the runs that are there now."""
        began = time.monotonic()
        found: dict[str, Run] = {}
        told: list[str] = []
        budget = [MOST_FOLDERS]
        for root, path in _find_all(self.roots, budget):
            if len(found) == MOST_RUNS:
                told.append(f"there are more than {MOST_RUNS:,} runs; these are the first")
                break
            id = run_id(path)
            if id not in found:
                found[id] = self.runs.get(id) or Run(path, path.name if path == root else str(path.relative_to(root)))
        if budget[0] <= 0:
            told.append(f"there are more than {MOST_FOLDERS:,} folders; runs were looked for in the first")
        self.runs, self.told = found, told
        ended = time.monotonic()
        self._search_at = ended + max(SECONDS_BETWEEN_SEARCHES, (ended - began) / SHARE_OF_SEARCHING)

    def news(self, cursors: Mapping[str, Cursor | None]) -> dict[str, Any]:
        """The list of runs, and of those with a cursor (None: nothing is there yet) what is new, as JSON."""
        with self._lock:
            if time.monotonic() >= self._search_at:
                self.search()
            self._read()
            now = time.time()
            return {
                "runs": [run.summary(now) for run in self.runs.values()],
                "news": {id: _new(self.runs[id], cursor) for id, cursor in cursors.items() if id in self.runs},
                "reading": any(run.pending for run in self.runs.values()),
                "told": self.told,
            }

    def part(self, id: str, axis: str, start: float, end: float) -> dict[str, Any]:
        """The training of a run where `axis` is from `start` to `end`, as closely as it can be told, as JSON. `KeyError`."""
        with self._lock:
            run = self.runs[id]
            rows = _part(run, *run.past.training.between(axis, min(start, end), max(start, end)))
            return {"generation": run.generation, "training": rows.tree(AXES)}

    def describe(self, id: str) -> dict[str, Any]:
        """All that a run's own panel shows, as JSON. `KeyError`."""
        with self._lock:
            run = self.runs[id]
            return {
                "id": id,
                "name": text_of(run.name),
                "folder": text_of(run.root),
                "slow": list(run.past.told),
                **run.facts.tree(),
            }

    def report(self, id: str) -> Path:
        """Where a run's report is. `KeyError`."""
        with self._lock:
            return self.runs[id].facts.folder.report

    def _read(self) -> None:
        """Small news first, so that a long history keeps nobody waiting."""
        left = AT_ONCE
        for run in sorted(self.runs.values(), key=lambda run: run.pending):
            while left > 0:
                left -= run.look()
                if not run.pending:
                    break


def _new(run: Run, cursor: Cursor | None) -> dict[str, Any]:
    same = cursor is not None and cursor.generation == run.generation
    training, evaluations = (cursor.training, cursor.evaluations) if cursor is not None and same else ((0, 0), (0, 0))
    return {
        "generation": run.generation,
        "training": _since(run.past.training, training).tree(AXES),
        "evaluations": _since(run.past.evaluations, evaluations).tree(AXES),
    }


def _since(history: History, known: tuple[int, int]) -> Rows:
    """From the first row on that is not known whole; all rows, where they have other sizes by now."""
    per_row = per_row_of(history.count, POINTS)
    return history.rows(per_row, min(known[1], history.count) // per_row if known[0] == per_row else 0)


def _part(run: Run, first: int, last: int) -> Rows:
    """Buckets `first` to before `last`: by their records, read again, where buckets are too coarse and it costs little."""
    history = run.past.training
    per_row = per_row_of((last - first) * history.width, POINTS)
    if per_row >= history.width:
        return history.rows(per_row, first * history.width // per_row, last * history.width)
    start, end = ([*history.offsets, run.tail.offset][place] for place in (first, last))
    if end - start <= MOST_DETAIL:
        with suppress(OSError):  # the file may just have gone
            closer = read_part(run.tail.path, start, end, history.last("seconds", first - 1), CAPACITY)
            return closer.rows(per_row_of(closer.count, POINTS))
    return history.rows(history.width, first, last * history.width)


def _find_all(roots: Sequence[Path], budget: list[int]) -> Iterator[tuple[Path, Path]]:
    """(root, a run's folder in it); `budget` is left with how many folders may still be looked into."""
    for root in roots:
        for path in _find(root, DEEPEST, budget):
            yield root, path


def _find(folder: Path, depth: int, budget: list[int]) -> Iterator[Path]:
    """Folders that hold a run, in the order of their names; a run's own folders are not looked into."""
    budget[0] -= 1
    if (folder / "metrics.jsonl").is_file():
        yield folder
        return
    if not depth or budget[0] <= 0:
        return
    try:
        inside = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return
    for name in inside:
        yield from _find(folder / name, depth - 1, budget)
