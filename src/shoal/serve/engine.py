"""The engine of texts: a scheduler, and a thread that lets it go on while there is something to do."""

from collections import deque
from collections.abc import Callable
from threading import Condition, Thread

from shoal.core.errors import InputError
from shoal.core.native.decode import Format
from shoal.serve.generation import LanguageModel
from shoal.serve.request import ClosedError, FullError, Piece, Request
from shoal.serve.runner import make_runner
from shoal.serve.scheduler import CHUNK, Scheduler
from shoal.serve.text import Text

CAPACITY = 4096
"""Tokens of a text, its prompt included, where nothing else is said and the model's context is no shorter."""


class ThreadedEngine:
    """The `Engine` of `serve.request`; `most`: requests that are written or wait at a time.

    Pieces are told from the engine's thread, between tokens: a listener must take them quickly.
    """

    def __init__(self, scheduler: Scheduler, most: int) -> None:
        self._scheduler, self._most = scheduler, most
        self._changed = Condition()
        self._added: deque[Text] = deque()
        self._cancelled: deque[Text] = deque()
        self._closing = self._at_once = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def ready_constraints(self) -> None:
        """Do now what the first text with a constraint would wait for."""
        self._scheduler.ready_constraints()

    def submit(self, request: Request, tell: Callable[[Piece], None]) -> "EngineTicket":
        """As `Engine.submit`; `ClosedError` after `close`."""
        text = self._scheduler.prepare(request, tell)
        with self._changed:
            if self._closing:
                raise ClosedError("no more texts are taken in: the engine is being closed")
            if self.running + self.waiting >= self._most:
                raise FullError(f"{self._most} texts are being written, or wait, already: that is as many as may")
            self._added.append(text)
            self._changed.notify()
        return EngineTicket(self, text)

    def cancel(self, text: Text) -> None:
        """What a ticket asks for."""
        with self._changed:
            self._cancelled.append(text)
            self._changed.notify()

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._added) + self._scheduler.waiting

    def close(self, finish: bool = True) -> None:
        """Take in nothing more; return when all is said (`finish`), or at once, all texts cancelled."""
        with self._changed:
            self._closing = True
            self._at_once |= not finish
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._take_in():
            try:
                self._scheduler.step()
            except Exception as error:  # not one text's: nobody is to wait for what doesn't come
                self._scheduler.fail_all(error)

    def _take_in(self) -> bool:
        """Wait for something to do, and hear what was asked meanwhile; whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._scheduler.busy or self._added or self._cancelled or self._closing)
            while self._added:
                self._scheduler.add(self._added.popleft())
            cancelled = [*self._cancelled]
            self._cancelled.clear()
            at_once, going = self._at_once, not self._closing
        for text in cancelled:
            self._scheduler.cancel(text)
        if at_once:
            self._scheduler.cancel_all()
        return going or self._scheduler.busy


class EngineTicket:
    """A request that an engine took in."""

    def __init__(self, engine: ThreadedEngine, text: Text) -> None:
        self._engine, self._text = engine, text

    def cancel(self) -> None:
        """Give up; harmless when the text has ended. The last piece says `cancelled`."""
        self._engine.cancel(self._text)


def make_engine(
    language: LanguageModel,
    slots: int = 8,
    capacity: int | None = None,
    queue: int = 64,
    chunk: int = CHUNK,
    weights: Format = "fp32",
    both_ways: bool = False,
) -> ThreadedEngine:
    """An engine that writes `slots` texts of up to `capacity` tokens at once, while `queue` more wait.

    `capacity` None: the model's context, 4096 at most. `chunk`: tokens of prompts that are read between two of others.
    `weights`: how they are kept; `both_ways`: the model was taught so to see prompts (prefix attention). `InputError` for a
    model that writes no texts.
    """
    config = language.model.config
    if not config.causal:
        raise InputError("this model sees both ways, so it can't go on with a text")
    for name, value in (("slots", slots), ("capacity", capacity), ("chunk", chunk)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; accepted: a whole number above 0")
    if queue < 0:
        raise InputError(f"queue is {queue}; accepted: 0 or more")
    runner = make_runner(language.model, slots, min(capacity or CAPACITY, config.context), weights, both_ways)
    scheduler = Scheduler(runner, language.tokenizer, language.ends, chunk, both_ways=both_ways)
    return ThreadedEngine(scheduler, slots + queue)
