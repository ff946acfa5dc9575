"""A run as the board sees it: its records in bounded room, what it is doing now, and what stands beside its metrics."""

import hashlib
import os
import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shoal.board.facts import Facts, number
from shoal.board.history import History
from shoal.board.records import Record, parse
from shoal.board.tail import LONGEST, News, Tail
from shoal.core.figures import is_better_lower
from shoal.core.run_directory import RunDirectory

RECENT = 50
"""Steps by which speed and time left are told."""

MOST_TOLD = 100
"""Words about slow ranks that are kept, the last ones."""

PATIENCE = 120.0
"""Seconds without a line after which a run is not running, if its steps and evaluations take no longer."""

State = Literal["starting", "running", "finished", "stopped", "failed"]

AXES = ("step", "tokens", "seconds")
"""What charts may be drawn over; all rise. `seconds` are those of steps and evaluations, summed up."""


@dataclass
class Run:
    """One run's folder."""

    root: Path
    name: str
    tail: Tail = field(init=False)
    facts: Facts = field(init=False)
    generation: int = 0
    """How often its metrics have begun anew."""
    pending: int = 0
    """Bytes of its metrics that are still to be read."""

    def __post_init__(self) -> None:
        folder = RunDirectory(self.root)
        self.tail, self.facts = Tail(folder.metrics), Facts(folder)
        self._clear()

    @property
    def id(self) -> str:
        """What the page calls it: names of folders needn't be text."""
        return hashlib.blake2b(os.fsencode(self.root), digest_size=8).hexdigest()

    def look(self) -> int:
        """Take in what is new, so many bytes at most; how many were read."""
        before = self.tail.bytes_read
        self._take(self.tail.look())
        return self.tail.bytes_read - before

    def summary(self, now: float) -> dict[str, Any]:
        """What the list of runs shows, as JSON."""
        last = self.recent[-1][3] if self.recent else {}
        best = self._best()
        state, why = self._state(now)
        return {
            "id": self.id,
            "name": self.name,
            "state": state,
            "why": why,
            "step": self.step,
            "loss": _rounded(last.get("loss")),
            "best": best and {"figure": best[0], "value": _rounded(best[1]), "step": best[2]},
            "tokens_per_second": _rounded(self._speed()),
            "done": _rounded(self._done(), 4),
            "seconds_left": _rounded(self._seconds_left(), 3) if state == "running" else None,
            "when": self._changed(),
            "broken_lines": self.broken,
            "read": _rounded(self.tail.offset / (self.tail.offset + self.pending), 3) if self.pending else 1,
            "faults": self.facts.faults,
        }

    def _take(self, news: News) -> None:
        if news.restarted:
            self._clear()
            self.generation += 1
        self.pending = news.pending
        for offset, line in news.lines:
            record = parse(line)
            if record is None:
                self.broken += 1
            else:
                self._add(offset, record)

    def _add(self, offset: int, record: Record) -> None:
        values = record.values
        self.seconds += values.get("eval_seconds" if record.is_evaluation else "step_seconds", 0.0)
        values["seconds"] = self.seconds
        self.step = max(self.step, record.step)
        self.diverged = record.diverged
        self.told.extend(f"step {record.step:,}: {text}" for text in record.told)
        if not record.is_evaluation:
            self.training.add(offset, values)
            self.recent.append((record.step, values.get("tokens", 0.0), self.seconds, values))
            return
        self.evaluations.add(offset, values)
        self.evaluation_seconds = values.get("eval_seconds", self.evaluation_seconds)
        for key, value in values.items():
            if key.startswith("eval_") and (key in self.lowest or len(self.lowest) < 100):
                self.lowest[key] = min(self.lowest.get(key, (value, record.step)), (value, record.step))
                self.highest[key] = max(self.highest.get(key, (value, -record.step)), (value, -record.step))

    def _clear(self) -> None:
        self.training, self.evaluations = History(), History()
        self.recent: deque[tuple[int, float, float, dict[str, float]]] = deque(maxlen=RECENT)
        self.told: deque[str] = deque(maxlen=MOST_TOLD)
        self.lowest: dict[str, tuple[float, int]] = {}
        self.highest: dict[str, tuple[float, int]] = {}
        self.step = self.broken = 0
        self.seconds = self.evaluation_seconds = 0.0
        self.diverged = False

    def _best(self) -> tuple[str, float, int] | None:
        """(figure, its best value, step) of what the recipe goes by."""
        metric = self.facts.recipe.get().get("evaluation.metric")
        figure = metric if isinstance(metric, str) and metric in self.lowest else "eval_loss"
        if figure not in self.lowest:
            return None
        value, step = self.lowest[figure] if is_better_lower(figure) else self.highest[figure]
        return figure, value, abs(step)

    def _changed(self) -> float | None:
        """When the last line came, in seconds since 1970."""
        try:
            return self.tail.path.stat().st_mtime
        except OSError:
            return None

    def _state(self, now: float) -> tuple[State, str]:
        """What it is doing, and by what that is known: nobody signs a run off that was killed."""
        if self.pending:
            return "running", "its metrics are still being read"
        steps = self.facts.result.get().get("steps")
        if steps == self.step and self.step:
            return "finished", "it has a result"
        silent = now - (self._changed() or 0.0)
        slowest = max((values.get("step_seconds", 0.0) for *_, values in self.recent), default=0.0)
        patience = max(PATIENCE, 20 * slowest, 5 * self.evaluation_seconds, 600.0 if self._done() >= 1 else 0.0)
        if silent < patience:
            return ("running", "its last line is recent") if self.step else ("starting", "it has no step yet")
        saved = self.facts.saved_step
        if self.diverged:
            return "failed", "its last loss is not a finite number"
        if saved is not None and saved >= self.step:
            return "stopped", f"it has saved its last step, {saved:,}, and left"
        return "failed", f"no line for {silent / 60:,.0f} minutes, no result, {'its newest checkpoint is of step ' + format(saved, ',') if saved is not None else 'no checkpoint'}"  # fmt: skip

    def _done(self, step: float | None = None, tokens: float = 0.0, seconds: float = 0.0) -> float:
        """The share of the run that is done now, or there; 0 where its end is not known."""
        if step is None:
            step, tokens, seconds = self.recent[-1][:3] if self.recent else (0.0, 0.0, 0.0)
        recipe = self.facts.recipe.get()
        limits = (
            (step, number(recipe.get("train.steps"))),
            (step, self.facts.steps_of_epochs),
            (tokens, number(recipe.get("train.tokens"))),
            (seconds, 60 * number(recipe.get("train.minutes"))),
        )
        return max((used / limit for used, limit in limits if limit), default=0.0)

    def _seconds_left(self) -> float | None:
        """By how much of the run the last steps were; None where that can't be told."""
        if len(self.recent) < 2:
            return None
        first, last = self.recent[0], self.recent[-1]
        done, gained = self._done(), self._done() - self._done(*first[:3])
        return max(0.0, 1 - done) / gained * (last[2] - first[2]) if gained > 0 else None

    def _speed(self) -> float | None:
        """Tokens a second of all ranks, the median of the last steps."""
        return statistics.median(known) if (known := [v["tokens_per_second"] for *_, v in self.recent if "tokens_per_second" in v]) else None


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def detail(path: Path, start: int, end: int, seconds: float, capacity: int) -> History:
    """The training records of a part of a file, from byte `start` to before `end`, read anew; `seconds` passed before it."""
    history = History(capacity)
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (line := file.readline(LONGEST)):
            if (record := parse(line)) is not None:
                seconds += record.values.get("eval_seconds" if record.is_evaluation else "step_seconds", 0.0)
                if not record.is_evaluation:
                    history.add(start, record.values | {"seconds": seconds})
            start += len(line)
    return history
