"""Texts that an engine writes for one request, as they come: from the engine's thread to the server's loop.

The engine tells pieces from its own thread, one a token. Here they wait until the request's task takes all that there are,
joined to one a text; and a stream takes them at intervals of `Limits.event_seconds` at least, but for the first and the
last. A reader sees no difference at 25 events a second, while an event costs the server, and its client, as much as a token
of a small model costs the engine.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from shoal.serve.http.errors import ApiError, overloaded, timed_out
from shoal.serve.request import Engine, Finish, Piece, Request, Ticket, ToldToken

UNSEEN_SECONDS = 0.1
"""How often pieces are looked at that nobody is shown."""


@dataclass
class Written:
    """A text up to now."""

    text: str = ""
    told: list[ToldToken] = field(default_factory=list)
    tokens: int = 0
    reused: int = 0
    finish: Finish | None = None

    def add(self, piece: Piece) -> None:
        """What it goes on with."""
        self.text += piece.text
        self.told += piece.told
        self.tokens = piece.tokens
        self.reused = self.reused or piece.reused
        self.finish = piece.finish


class Texts:
    """The texts of one request; `close` gives up those that are not finished."""

    def __init__(self, deadline: float, first: Callable[[], None], constrained: bool = False) -> None:
        """On the loop whose task takes the pieces; `deadline`: by its clock; `first`: is told of the first piece.

        `constrained`: the client said what the texts must be; where one can't go on, that is why.
        """
        self.written: list[Written] = []
        self._loop = asyncio.get_running_loop()
        self._deadline, self._first, self._constrained = deadline, first, constrained
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._come = asyncio.Event()
        # whether the task is to be woken by the next piece; by a text's last one it is in any case
        self._asleep = False
        self._tickets: list[Ticket] = []
        self._closed = False

    def submit(self, engine: Engine, requests: Sequence[Request]) -> None:
        """From any thread: begin. Raises as `Engine.submit`; those that were taken in before are for `close` to give up."""
        self.written = [Written() for _ in requests]
        for number, request in enumerate(requests):
            self._tickets.append(engine.submit(request, partial(self._tell, number)))
        if self._closed:
            self._cancel()

    async def batches(self, interval: float = 0.0, quiet: float | None = None) -> AsyncIterator[list[tuple[int, Piece]]]:
        """(number of the text, what it goes on with), until all texts are finished; so many seconds apart, at least.

        Nothing, where nothing has come for `quiet` seconds. `ApiError` where a text fails, or the time is over.
        """
        last = -math.inf
        while not self.finished:
            await self._sleep(last + interval)
            if not self._pieces and not await self._comes(quiet):
                yield []
                continue
            come: dict[int, list[Piece]] = {}
            broken = None
            while self._pieces:
                number, piece = self._pieces.popleft()
                if piece.finish in ("failed", "cancelled"):
                    broken = _broken(piece, self._constrained)
                    break
                come.setdefault(number, []).append(piece)
            joined = [(number, _joined(pieces)) for number, pieces in come.items()]
            for number, piece in joined:
                self.written[number].add(piece)
            if joined:
                if last == -math.inf:
                    self._first()
                last = self._loop.time()
                yield joined
            if broken is not None:
                raise broken

    @property
    def finished(self) -> bool:
        """Whether all texts have ended."""
        return all(text.finish is not None for text in self.written)

    async def whole(self) -> list[Written]:
        """All texts, finished."""
        async for _ in self.batches(UNSEEN_SECONDS):
            pass
        return self.written

    def close(self) -> None:
        """On the loop: nobody waits for them any more."""
        self._closed = True
        self._cancel()

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    async def _comes(self, seconds: float | None) -> bool:
        """Whether a piece has come, or comes within this time."""
        until = math.inf if seconds is None else self._loop.time() + seconds
        while True:
            self._asleep = True  # again, as who tells a piece that is taken already takes that back
            if self._pieces or self._loop.time() >= until:
                self._asleep = False
                return bool(self._pieces)
            await self._sleep(until)

    async def _sleep(self, until: float) -> None:
        """Until a time by the loop's clock, or woken before; `ApiError` where the request's time is over."""
        if until > self._loop.time():
            alarm = self._loop.call_at(min(until, self._deadline), self._come.set)
            try:
                await self._come.wait()
            finally:
                alarm.cancel()
        self._come.clear()
        if self._loop.time() >= self._deadline:
            raise timed_out()

    def _tell(self, number: int, piece: Piece) -> None:
        """From the engine's thread, which wakes the loop no more often than it has to."""
        self._pieces.append((number, piece))
        if self._asleep or piece.finish is not None:
            self._asleep = False
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._come.set)


def _joined(pieces: Sequence[Piece]) -> Piece:
    """A text's pieces, in their order, as one."""
    last = pieces[-1]
    told = tuple(token for piece in pieces for token in piece.told)
    return Piece(
        "".join(piece.text for piece in pieces), last.tokens, told, last.finish, max(piece.reused for piece in pieces)
    )


def _broken(piece: Piece, constrained: bool) -> ApiError:
    if piece.finish == "failed":
        status, code = (400, "response_format_failed") if constrained else (500, None)
        return ApiError(status, f"the engine could not go on: {piece.text}", code=code)
    return overloaded("the server stops, and has given up this text")
