"""The engine's thread: requests come from anywhere, texts go to whoever asked, and nothing waits for ever."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import Queue
from threading import Event

import pytest

from shoal.core.errors import InputError
from shoal.data.tokenizer import build_char
from shoal.serve.engine import ThreadedEngine, make_engine
from shoal.serve.generation import LanguageModel
from shoal.serve.request import ClosedError, FullError, Piece, Request
from shoal.serve.runner import TorchRunner
from shoal.serve.sampling import Sampling
from shoal.serve.scheduler import Scheduler
from tests.models.shapes import BERT, LLAMA, random_model
from tests.serve.written import joined, scheduler_of, write_all

CHAR = build_char("abcdefghijklmnopqrstuvwxyz .,")
LANGUAGE = LanguageModel(random_model(replace(LLAMA, vocabulary=CHAR.vocabulary, context=512), 3), CHAR)
WAIT = 60


def ask(prompt: str, tokens: int = 12, seed: int = 0) -> Request:
    return Request(tuple(CHAR.encode(prompt).tolist()), tokens, Sampling(1.0), seed)


def long() -> Request:
    """What would take long."""
    return Request((1, 2, 3), 500, Sampling(0))


class Told:
    """What was told of one request."""

    def __init__(self) -> None:
        self._queue: Queue[Piece] = Queue()

    def __call__(self, piece: Piece) -> None:
        self._queue.put(piece)

    def next(self) -> Piece:
        return self._queue.get(timeout=WAIT)

    def all(self) -> list[Piece]:
        pieces = [self.next()]
        while pieces[-1].finish is None:
            pieces.append(self.next())
        return pieces


@pytest.fixture
def engine() -> Iterator[ThreadedEngine]:
    engine = make_engine(LANGUAGE, slots=3, queue=5)
    yield engine
    engine.close(finish=False)


def test_requests_of_many_threads_get_each_its_own_text() -> None:
    engine = make_engine(LANGUAGE, slots=3, queue=20)
    requests = [ask(prompt, 15, seed) for prompt in ("a", "the fish", "to be or not") for seed in range(4)]

    def write(request: Request) -> str:
        told = Told()
        engine.submit(request, told)
        return joined(told.all())

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(write, requests))
    engine.close()
    assert found == [joined(pieces) for pieces in write_all(scheduler_of(LANGUAGE, 1), requests)]
    assert (engine.running, engine.waiting) == (0, 0)


def test_more_than_may_wait_are_refused_until_one_has_ended(engine: ThreadedEngine) -> None:
    told = [Told() for _ in range(8)]
    tickets = [engine.submit(ask("a", 500, seed), each) for seed, each in enumerate(told)]
    with pytest.raises(FullError, match="8 texts are being written, or wait, already"):
        engine.submit(ask("a"), print)
    tickets[-1].cancel()
    assert told[-1].all()[-1].finish == "cancelled"
    engine.submit(ask("a", 1), told[-1])


def test_what_is_cancelled_ends_and_lets_another_go_on(engine: ThreadedEngine) -> None:
    told = [Told() for _ in range(4)]
    tickets = [engine.submit(long(), each) for each in told]
    told[0].next()
    for ticket in (tickets[0], tickets[0], tickets[3]):
        ticket.cancel()
    assert told[0].all()[-1].finish == "cancelled"
    assert told[3].all()[-1].finish == "cancelled"
    after = Told()
    engine.submit(ask("the fish"), after)
    assert joined(after.all())


def test_closing_finishes_what_is_being_written_and_takes_in_nothing_more() -> None:
    engine, told = make_engine(LANGUAGE, slots=1), [Told() for _ in range(3)]
    for seed, each in enumerate(told):
        engine.submit(ask("the fish", 30, seed), each)
    engine.close()
    assert all(each.all()[-1].finish in ("stop", "length") for each in told)
    with pytest.raises(ClosedError, match="the engine is being closed"):
        engine.submit(ask("a"), print)
    engine.close()


def test_closing_at_once_cancels_what_is_being_written() -> None:
    engine, told = make_engine(LANGUAGE, slots=1), [Told() for _ in range(3)]
    for each in told:
        engine.submit(long(), each)
    told[0].next()
    engine.close(finish=False)
    assert all(each.all()[-1].finish == "cancelled" for each in told)


def test_what_can_not_be_served_is_told_where_it_is_asked(engine: ThreadedEngine) -> None:
    with pytest.raises(InputError, match="the prompt has 513 tokens, 512 at most can be read"):
        engine.submit(Request((1,) * 513, 5), print)
    with pytest.raises(InputError, match="this model sees both ways"):
        make_engine(LanguageModel(random_model(BERT), CHAR))
    with pytest.raises(InputError, match="slots is 0; accepted: a whole number above 0"):
        make_engine(LANGUAGE, slots=0)
    with pytest.raises(InputError, match="queue is -1; accepted: 0 or more"):
        make_engine(LANGUAGE, queue=-1)
    with pytest.raises(InputError, match=r"100000000000 texts of 512 tokens have keys and values of .* GB"):
        make_engine(LANGUAGE, slots=10**11)


class Forgetful(TorchRunner):
    """Can't copy what it holds."""

    def copy(self, source: int, target: int, length: int) -> None:
        raise RuntimeError("no memory is left")


def test_an_engine_goes_on_after_what_it_can_not_do() -> None:
    scheduler = Scheduler(Forgetful(LANGUAGE.model, 2, 100), CHAR, LANGUAGE.ends)
    engine, told = ThreadedEngine(scheduler, 8), [Told() for _ in range(2)]
    engine.submit(long(), told[0])
    told[0].next()
    engine.submit(Request((1, 2, 3), 5), told[1])  # would share the other's prompt
    assert [each.all()[-1].finish for each in told] == ["failed", "failed"]
    engine.submit(Request((9, 8, 7), 5), told[0])
    assert told[0].all()[-1].finish == "length"
    engine.close()
    assert engine.running == 0


def test_a_listener_may_ask_for_more(engine: ThreadedEngine) -> None:
    told, asked = Told(), Event()

    def ask_again(piece: Piece) -> None:
        if piece.finish is not None and not asked.is_set():
            asked.set()
            engine.submit(ask("and then", 5), told)

    engine.submit(ask("the fish", 5), ask_again)
    assert joined(told.all())
