"""A run as the board sees it: what its metrics have told, and what it is doing now."""

import hashlib
import math
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shoal.board.facts import Facts, number
from shoal.board.past import Moment, Past
from shoal.board.tail import Tail
from shoal.core.figures import is_better_lower
from shoal.core.run_directory import RunDirectory

PATIENCE = 120.0
"""Seconds without a line after which a run is not running, if its steps and evaluations take no longer."""

AT_THE_END = 600.0
"""The same when all steps are done: the last evaluation reads more than those before."""

State = Literal["starting", "running", "finished", "stopped", "failed"]


def run_id(root: Path) -> str:
    """What the page calls a run: names of folders needn't be text."""
    return hashlib.blake2b(os.fsencode(root), digest_size=8).hexdigest()


def text_of(name: Path | str) -> str:
    """A name as text, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "replace")


@dataclass
class Run:
    """One run's folder."""

    root: Path
    name: str
    tail: Tail = field(init=False)
    facts: Facts = field(init=False)
    past: Past = field(default_factory=Past)
    generation: int = 0
    """How often its metrics have begun anew."""
    pending: int = 0
    """Bytes of its metrics that are still to be read."""

    def __post_init__(self) -> None:
        folder = RunDirectory(self.root)
        self.tail, self.facts = Tail(folder.metrics), Facts(folder)

    def look(self) -> int:
        """Take in what is new, so many bytes at most; how many were read."""
        before = self.tail.bytes_read
        news = self.tail.look()
        if news.restarted:
            self.past = Past()
            self.generation += 1
        self.pending = news.pending
        for offset, line in news.lines:
            self.past.take(offset, line)
        return self.tail.bytes_read - before

    def summary(self, now: float) -> dict[str, Any]:
        """What the list of runs shows, as JSON; `now` in seconds since 1970."""
        past, best, when = self.past, self._best(), self._when()
        state, why = self._state(now - (when or 0.0))
        speeds = past.recently("tokens_per_second")
        return {
            "id": run_id(self.root),
            "name": text_of(self.name),
            "state": state,
            "why": why,
            "step": past.step,
            "loss": _rounded(past.now.values.get("loss")),
            "best": best and {"figure": best[0], "value": _rounded(best[1]), "step": best[2]},
            "tokens_per_second": _rounded(statistics.median(speeds)) if speeds else None,
            "done": _rounded(self._done(past.now), 4),
            "seconds_left": _rounded(self._seconds_left(), 3) if state == "running" else None,
            "when": when,
            "broken_lines": past.broken,
            "read": _rounded(self.tail.offset / (self.tail.offset + self.pending), 3) if self.pending else 1,
            "faults": self.facts.faults,
        }

    def _best(self) -> tuple[str, float, int] | None:
        """(figure, its best value, step) of what the recipe goes by."""
        metric = self.facts.recipe.get().get("evaluation.metric")
        figure = metric if isinstance(metric, str) and metric in self.past.lowest else "eval_loss"
        best = (self.past.lowest if is_better_lower(figure) else self.past.highest).get(figure)
        return best and (figure, *best)

    def _when(self) -> float | None:
        """When the last line came, in seconds since 1970."""
        try:
            return self.tail.path.stat().st_mtime
        except OSError:
            return None

    def _state(self, silent: float) -> tuple[State, str]:
        """What it is doing, `silent` seconds after its last line, and by what that is known: a killed run says nothing."""
        if self.pending:
            return "running", "its metrics are still being read"
        past, saved = self.past, self.facts.saved_step
        if past.step and self.facts.result.get().get("steps") == past.step:
            return "finished", "it has a result"
        if silent < self._patience():
            return ("running", "its last line is recent") if past.step else ("starting", "it has no step yet")
        if past.diverged:
            return "failed", "its last loss is not a finite number"
        if past.step and saved is not None and saved >= past.step:
            return "stopped", f"it has saved its last step, {saved:,}, and left"
        newest = "no checkpoint" if saved is None else f"its newest checkpoint is of step {saved:,}"
        return "failed", f"no line for {silent / 60:,.0f} minutes, no result, {newest}"

    def _patience(self) -> float:
        """For how many seconds it may be silent."""
        slowest = max(self.past.recently("step_seconds"), default=0.0)
        ending = AT_THE_END if self._done(self.past.now) >= 1 else 0.0
        return max(PATIENCE, 20 * slowest, 5 * self.past.evaluation_seconds, ending)

    def _done(self, moment: Moment) -> float:
        """The share of the run that was done by then; 0 where its end is not known."""
        recipe = self.facts.recipe.get()
        limits = (
            (moment.step, number(recipe.get("train.steps"))),
            (moment.step, self.facts.steps_of_epochs),
            (moment.tokens, number(recipe.get("train.tokens"))),
            (moment.seconds, 60 * number(recipe.get("train.minutes"))),
        )
        return max((used / limit for used, limit in limits if limit), default=0.0)

    def _seconds_left(self) -> float | None:
        """By how much of the run the last steps were; None where that can't be told."""
        if len(self.past.recent) < 2:
            return None
        first, last = self.past.recent[0], self.past.now
        done, before = self._done(last), self._done(first)
        return max(0.0, 1 - done) / (done - before) * (last.seconds - first.seconds) if done > before else None


def _rounded(value: float | None, digits: int = 6) -> float | None:
    """As JSON has it: numbers of files are finite, but not what follows from enormous ones."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")
