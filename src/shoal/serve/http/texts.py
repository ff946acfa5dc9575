"""Texts that an engine writes for one request, as they come: from the engine's thread to the server's loop.

The engine tells pieces from its own thread; here they wait, few as they are, until the request's task takes all that there
are at once. So a client that reads slowly, or a loop that lags, makes events longer, not more.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from shoal.serve.http.errors import ApiError, overloaded
from shoal.serve.request import Engine, Finish, Piece, Request, Ticket, ToldToken


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

    async def batches(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """(number of the text, piece), as many as have come since, until all texts are finished.

        `ApiError` where one fails, or the time is over.
        """
        left, begun = len(self.written), False
        while left:
            await self._wait()
            batch: list[tuple[int, Piece]] = []
            while self._pieces:
                number, piece = self._pieces.popleft()
                if piece.finish in ("failed", "cancelled"):
                    raise _broken(piece, self._constrained)
                self.written[number].add(piece)
                left -= piece.finish is not None
                batch.append((number, piece))
            if batch and not begun:
                begun = True
                self._first()
            if batch:
                yield batch

    async def whole(self) -> list[Written]:
        """All texts, finished."""
        async for _ in self.batches():
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

    async def _wait(self) -> None:
        await self._come.wait()
        self._come.clear()
        if self._loop.time() >= self._deadline:
            raise overloaded("the answer was not finished in the time that a request may take")

    def _tell(self, number: int, piece: Piece) -> None:
        """From the engine's thread."""
        self._pieces.append((number, piece))
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._come.set)


def _broken(piece: Piece, constrained: bool) -> ApiError:
    if piece.finish == "failed":
        status, code = (400, "response_format_failed") if constrained else (500, None)
        return ApiError(status, f"the engine could not go on: {piece.text}", code=code)
    return overloaded("the server stops, and has given up this text")
