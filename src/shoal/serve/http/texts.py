"""Texts that an engine writes for one request, as they come: from the engine's thread to the server's loop.

The engine tells pieces from its own thread, one a token. Here they wait until the request's task takes all that there are,
joined to one a text; and a stream takes them at intervals of `Limits.event_seconds` at least, but for the first and the
last. A reader sees no difference at 50 events a second, while an event costs the server, and its client, as much as a token
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
        self._come, self._finished = asyncio.Event(), asyncio.Event()
        self._waking = False
        self._alarm = self._loop.call_at(deadline, self._come.set)
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
        left, last = len(self.written), -math.inf
        while left:
            if not await self._comes(quiet):
                yield []
                continue
            await self._wait(last + interval)
            joined: dict[int, Piece] = {}
            while self._pieces:
                number, piece = self._pieces.popleft()
                if piece.finish in ("failed", "cancelled"):
                    raise _broken(piece, self._constrained)
                self.written[number].add(piece)
                left -= piece.finish is not None
                joined[number] = _joined(joined[number], piece) if number in joined else piece
            if joined:
                if last == -math.inf:
                    self._first()
                last = self._loop.time()
                yield list(joined.items())

    async def whole(self) -> list[Written]:
        """All texts, finished."""
        async for _ in self.batches(UNSEEN_SECONDS):
            pass
        return self.written

    def close(self) -> None:
        """On the loop: nobody waits for them any more."""
        self._closed = True
        self._alarm.cancel()
        self._cancel()

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    async def _comes(self, seconds: float | None) -> bool:
        """Whether something comes within this time, or has come."""
        try:
            async with asyncio.timeout(seconds):
                return await self._come.wait()
        except TimeoutError:
            return False

    async def _wait(self, until: float) -> None:
        """Something has come: wait for more until a time by the loop's clock, unless a text is finished before."""
        if until > self._loop.time():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(until, self._deadline)):
                    await self._finished.wait()
        if self._loop.time() >= self._deadline:
            raise timed_out()
        self._come.clear()
        self._finished.clear()
        self._waking = False

    def _tell(self, number: int, piece: Piece) -> None:
        """From the engine's thread, which wakes the loop no more often than it has to."""
        self._pieces.append((number, piece))
        if self._waking and piece.finish is None:
            return
        self._waking = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._wake, piece.finish is not None)

    def _wake(self, finished: bool) -> None:
        self._come.set()
        if finished:
            self._finished.set()


def _joined(first: Piece, second: Piece) -> Piece:
    """Two pieces of a text, one after the other, as one."""
    told, reused = (*first.told, *second.told), first.reused or second.reused
    return Piece(first.text + second.text, second.tokens, told, second.finish, reused)


def _broken(piece: Piece, constrained: bool) -> ApiError:
    if piece.finish == "failed":
        status, code = (400, "response_format_failed") if constrained else (500, None)
        return ApiError(status, f"the engine could not go on: {piece.text}", code=code)
    return overloaded("the server stops, and has given up this text")
