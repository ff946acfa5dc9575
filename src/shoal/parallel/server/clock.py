"""Who may go on when: one small server that knows how far each worker is, and which of them live.

Synchronous workers meet here every step, to sum what the loop's totals hold. The others tell when they have pushed, and one
that is more than `bound` steps ahead of the slowest living worker waits (stale synchronous parallel, Ho et al. 2013); with
no bound nobody waits. Who lives is a matter of leases: a worker without a sign for `lease` seconds no longer counts, and
when it comes back it learns so, joins anew, and goes on from where the others are.

Workers that don't meet have no common step. They take pieces of the run's sequence of samples here, so that the budget is
one for all, and faster workers read more of it. A dead worker's piece is given to another.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.core.errors import RankError


class DroppedError(RankError):
    """This worker gave no sign for longer than its lease: the others have gone on, and it has to join anew."""


@dataclass(frozen=True)
class Pace:
    """How workers go together; times in seconds.

    `bound`: steps that one may be ahead of the slowest, None for any number. `patience`: for a worker's first sign.
    `piece`: samples that a worker takes at once, 0 where they meet. `end`: samples, and `limit`: seconds, after which the
    run is over; 0: no such limit.
    """

    workers: int
    bound: int | None = None
    lease: float = 30.0
    patience: float = 120.0
    piece: int = 0
    end: int = 0
    limit: float = 0.0


@dataclass(frozen=True)
class Standing:
    """How far the run is: steps that all have taken, samples given out, tokens and seconds used.

    `unread`: first samples of pieces that were given out, and lost with who had them. `begun`: what else the main worker has
    begun with, and others that come are to begin with, by what it is.
    """

    step: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    unread: tuple[int, ...] = ()
    begun: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class News:
    """What a worker is told between steps.

    `piece`: its next one, None when the run is over; `done`: the share of the budget that is used; `others`: tokens that
    the others have used since it was told last; `notes`: what people should know, told once, to rank 0.
    """

    piece: int | None
    done: float
    others: int
    seconds: float
    stop: bool
    notes: tuple[str, ...] = ()


@dataclass
class _Worker:
    """One that lives, or is to come, until its lease `ends`; steps before the one at which it `joined` aren't its affair."""

    ends: float
    joined: int | None = None
    steps: int = 0
    told: int = 0
    piece: int | None = None
    done: bool = False
    """It takes no more steps, and waits for the others to end: these don't wait for it."""


@dataclass
class _Meeting:
    values: dict[int, Any] = field(default_factory=dict)
    over: bool = False


class Clock:
    """Thread-safe; calls that wait return when they may, or raise `DroppedError`, or `RankError` when a worker failed."""

    def __init__(self, pace: Pace, now: Callable[[], float] = time.monotonic) -> None:
        self.pace, self.now = pace, now
        self.condition = threading.Condition()
        self.living = {rank: _Worker(now() + pace.patience) for rank in range(pace.workers)}
        self.standing: Standing | None = None
        self.kept: dict[int, Any] = {}
        self._began = 0.0
        self._meetings: dict[tuple[int, str], _Meeting] = {}
        self._failure: RankError | None = None
        self._stopping = False
        self._ended = False
        self._notes: list[str] = []

    def seed(self, standing: Standing, kept: dict[int, Any]) -> None:
        """Begin here; `kept`: what each rank is to be given back when it joins."""
        with self.condition:
            self._began = self.now() - standing.seconds
            self.standing, self.kept = standing, kept
            self.condition.notify_all()

    def join(self, rank: int) -> tuple[Standing, News, Any]:
        """Become one of the living: (where the run is, the first piece, what `seed` kept for this rank)."""
        with self.condition:
            while self.standing is None and self._failure is None:
                self.condition.wait()
            if self._failure is not None:
                raise self._failure
            assert self.standing is not None
            before = self.living.pop(rank, None)
            slowest = min((worker.steps for worker in self.living.values()), default=before.steps if before else 0)
            self._take_back(before)
            told = self.standing.tokens
            self.living[rank] = _Worker(self.now() + self.pace.lease, self.standing.step, slowest, told)
            for meeting in self._meetings.values():  # what a former self has said there is void
                if not meeting.over:
                    meeting.values.pop(rank, None)
            standing = replace(self.standing, seconds=self._seconds())
            return standing, self._news(rank, 0), self.kept.pop(rank, None)

    def renew(self, rank: int) -> None:
        """A sign of life."""
        with self.condition:
            if rank in self.living:
                self.living[rank].ends = max(self.living[rank].ends, self.now() + self.pace.lease)

    def leave(self, rank: int) -> None:
        """This worker is done: nobody waits for it any more."""
        with self.condition:
            self._take_back(self.living.pop(rank, None))
            self.condition.notify_all()

    def wait_for_others(self, rank: int) -> None:
        """Return when all others have left or died; those that never came are not waited for."""

        def alone() -> bool:
            return all(worker.joined is None for other, worker in self.living.items() if other != rank)

        with self.condition:
            if rank in self.living:
                self.living[rank].done = True
                self.condition.notify_all()
            self._wait(rank, alone)

    def fail(self, rank: int, message: str, exit_code: int) -> None:
        """A worker's own error ends the run for all."""
        with self.condition:
            if self._failure is None:
                self._failure = RankError(f"rank {rank}: {message}")
                self._failure.exit_code = exit_code
            self.condition.notify_all()

    def end(self, rank: int) -> None:
        """Whatever the budget, no more pieces are given out."""
        with self.condition:
            self._ended = True

    def stop(self) -> None:
        """All are to leave after their step."""
        with self.condition:
            self._stopping = True

    def meet(
        self, rank: int, step: int, totals: list[float], samples: int
    ) -> tuple[dict[int, list[float]], tuple[str, ...]]:
        """Wait for all living workers at a step, of so many samples; (each one's totals, notes). `totals[2]`: its tokens."""

        def complete(met: dict[int, list[float]]) -> None:
            assert self.standing is not None
            tokens = self.standing.tokens + int(sum(values[2] for values in met.values()))
            self.standing = replace(self.standing, step=step + 1, position=self.standing.position + samples, tokens=tokens)

        with self.condition:
            met = self._gather(rank, step, "step", totals, complete)
            return met, self._take_notes(rank)

    def gather(self, rank: int, step: int, purpose: str, value: Any) -> dict[int, Any]:
        """Each one's value, of all living workers that took the step; the next purpose or step forgets it."""
        with self.condition:
            return self._gather(rank, step, purpose, value, lambda met: None)

    def advance(self, rank: int, tokens: int) -> News:
        """The worker's piece, of so many tokens, is pushed; returns when it may go on with the next."""
        with self.condition:
            self._check(rank)
            assert self.standing is not None
            worker = self.living[rank]
            worker.piece, worker.steps = None, worker.steps + 1
            self.standing = replace(self.standing, tokens=self.standing.tokens + tokens)
            self.condition.notify_all()
            bound = self.pace.bound
            if bound is not None:
                self._wait(rank, lambda: self._stopping or worker.steps - self._slowest() <= bound)
            return self._news(rank, tokens)

    def now_standing(self) -> Standing:
        """Where the run is; pieces that are being computed count as unread."""
        with self.condition:
            assert self.standing is not None
            held = (worker.piece for worker in self.living.values() if worker.piece is not None)
            return replace(self.standing, seconds=self._seconds(), unread=(*self.standing.unread, *sorted(held)))

    def _slowest(self) -> int:
        return min((worker.steps for worker in self.living.values() if not worker.done), default=0)

    def _seconds(self) -> float:
        return self.now() - self._began

    def _news(self, rank: int, tokens: int) -> News:
        assert self.standing is not None
        worker, pace, seconds = self.living[rank], self.pace, self._seconds()
        others, worker.told = self.standing.tokens - worker.told - tokens, self.standing.tokens
        worker.piece = self._next_piece(seconds)
        held = sum(other.piece is not None for other in self.living.values())
        read = self.standing.position - pace.piece * (held + len(self.standing.unread))
        done = max(read / pace.end if pace.end else 0.0, seconds / pace.limit if pace.limit else 0.0)
        return News(worker.piece, done, others, seconds, self._stopping, self._take_notes(rank))

    def _next_piece(self, seconds: float) -> int | None:
        assert self.standing is not None
        if not self.pace.piece or self._ended or (self.pace.limit and seconds >= self.pace.limit):
            return None
        if self.standing.unread:
            piece, *rest = self.standing.unread
            self.standing = replace(self.standing, unread=tuple(rest))
            return piece
        piece = self.standing.position
        if self.pace.end and piece >= self.pace.end:
            return None
        self.standing = replace(self.standing, position=piece + self.pace.piece)
        return piece

    def _take_back(self, worker: _Worker | None) -> None:
        """What a worker will not read, another may."""
        if worker is not None and worker.piece is not None and self.standing is not None:
            self.standing = replace(self.standing, unread=(*self.standing.unread, worker.piece))

    def _take_notes(self, rank: int) -> tuple[str, ...]:
        if rank != 0:
            return ()
        notes, self._notes = tuple(self._notes), []
        return notes

    def _gather(
        self, rank: int, step: int, purpose: str, value: Any, complete: Callable[[dict[int, Any]], None]
    ) -> dict[int, Any]:
        self._check(rank)
        key = (step, purpose)
        if key not in self._meetings:
            # those before are over: all that live have come here from there
            self._meetings = {other: meeting for other, meeting in self._meetings.items() if other[0] >= step - 1}
            self._meetings[key] = _Meeting()
        meeting = self._meetings[key]
        if meeting.over:
            return meeting.values
        meeting.values[rank] = value

        def all_are_there() -> bool:
            expected = {other for other, worker in self.living.items() if (worker.joined or 0) <= step}
            if not meeting.over and expected <= meeting.values.keys():
                meeting.over = True
                complete(meeting.values)
                self.condition.notify_all()
            return meeting.over

        self._wait(rank, all_are_there)
        return meeting.values

    def _check(self, rank: int) -> None:
        if self._failure is not None:
            raise self._failure
        self._expire()
        if rank not in self.living:
            raise DroppedError(f"rank {rank} gave no sign for {self.pace.lease:g} s, and the others have gone on")
        self.renew(rank)

    def _wait(self, rank: int, ready: Callable[[], bool]) -> None:
        """Wait inside the lock, and notice leases that end. Waiting is no sign of life: the caller may have died."""
        while True:
            if self._failure is not None:
                raise self._failure
            self._expire()
            if rank not in self.living:
                self._check(rank)
            if ready():
                return
            next_end = min(worker.ends for worker in self.living.values())
            self.condition.wait(max(0.01, next_end - self.now()))

    def _expire(self) -> None:
        now = self.now()
        for rank, worker in list(self.living.items()):
            if worker.ends <= now:
                self._take_back(self.living.pop(rank))
                self._notes.append(
                    f"rank {rank} gave no sign for {self.pace.lease:g} s; the others go on without it, until it comes back"
                )
                self.condition.notify_all()
