"""The thread in which an encoder computes, and who waits for it.

One batch is computed at a time, on all cores. A request of many texts, or of a long one that is read in pieces, is cut into
batches that take turns with those of other requests, so a small one doesn't wait for all of a large one, a client that
leaves stops at the next batch, and no text is too long for the machine's memory.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shoal.serve.http.errors import timed_out
from shoal.serve.request import FullError

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 32
"""Texts, or pieces, at once."""


class Encoding:
    """`inside`: requests that are computed for, or wait."""

    def __init__(self, queue: int) -> None:
        """`queue`: how many may wait."""
        self.inside, self.queue = 0, queue
        self._thread = ThreadPoolExecutor(1, "shoal-encoder")

    async def each(
        self,
        items: Sequence[Item],
        size: Callable[[Item], int],
        work: Callable[[Sequence[Item]], Sequence[Result]],
        deadline: float,
    ) -> list[Result]:
        """A result for each item, from batches of like `size`; `deadline`: by the loop's clock."""
        if self.inside > self.queue:
            raise FullError(f"{self.inside - 1} requests wait already, as many as may")
        self.inside += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await self._in_turn(items, size, work)
        except TimeoutError:
            raise timed_out() from None
        finally:
            self.inside -= 1

    async def _in_turn(
        self, items: Sequence[Item], size: Callable[[Item], int], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result]:
        loop = asyncio.get_running_loop()
        order = sorted(range(len(items)), key=lambda number: size(items[number]))
        results: dict[int, Result] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            found = await loop.run_in_executor(self._thread, work, [items[number] for number in chosen])
            results |= zip(chosen, found, strict=True)
        return [results[number] for number in range(len(items))]

    def close(self) -> None:
        """Take in nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
