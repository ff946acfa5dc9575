"""Pieces of the engine's thread wake the loop's task, in whatever order the two threads get on."""

import asyncio
import threading
from collections import deque
from typing import Any

from shoal.serve.http.texts import Texts, Written
from shoal.serve.request import Piece


class Halting(deque[Any]):
    """Whoever appends halts right after, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.appended, self.go = threading.Event(), threading.Event()

    def append(self, item: Any) -> None:
        super().append(item)
        self.appended.set()
        self.go.wait(10)


def test_who_tells_a_piece_that_is_taken_already_leaves_the_next_a_listener() -> None:
    async def listen() -> list[str]:
        texts = Texts(asyncio.get_running_loop().time() + 10, lambda: None)
        texts.written = [Written()]
        texts._pieces = halting = Halting()
        telling = threading.Thread(target=texts._tell, args=(0, Piece("one", 1)))
        telling.start()
        halting.appended.wait(10)
        batches = texts.batches()
        heard = [piece.text for _, piece in await anext(batches)]
        hearing = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)  # it sleeps before the engine's thread has asked whether it does
        halting.go.set()
        telling.join()
        await asyncio.sleep(0.05)
        texts._tell(0, Piece(" two", 2))
        heard += [piece.text for _, piece in await asyncio.wait_for(hearing, 3)]
        return heard

    assert asyncio.run(listen()) == ["one", " two"]
