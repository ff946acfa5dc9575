"""A slower link than the real one, inside the process and without root: for measuring what a slower network would do.

A rank's sends share one link. Each has it to itself for its bytes over the bandwidth, when those before it are through, and
arrives some latencies later: one for each time that a collective passes a message on before the next can leave. Until then
the collective is held back, and only then entered; as it ends when all ranks have entered it, it ends when all ranks' bytes
have arrived. Nothing but a thread of its own waits for that, so communication overlaps with computing as it would.

A link's bandwidth counts frames, as `tc` and a network card do: of 1,514 bytes on Ethernet, 1,448 are a message's, and for
every other frame that comes in, 66 bytes go out to acknowledge it.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch

FRAMING = (1514 + 66 / 2) / 1448
"""Bytes on an Ethernet link for each byte of a long message, where as many come in: headers, and acknowledgements."""


class Throttle:
    """This rank's end of a link of `megabits` (millions of bits a second; 0: no limit) and `latency` (seconds)."""

    def __init__(self, megabits: float, latency: float, device: torch.device) -> None:
        self.seconds_per_byte = 8e-6 * FRAMING / megabits if megabits else 0.0
        self.latency = latency
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._held: SimpleQueue[tuple[float, Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._release, args=(device,), name="throttle", daemon=True).start()

    def send(self, count: int, hops: int, enter: Callable[[], Any]) -> "Held":
        """Send `count` bytes, passed on `hops` times one after the other, and only then `enter` the collective."""
        future: Future[Any] = Future()
        with self._lock:  # what is sent first must be held first: ranks agree on the order of collectives
            self._free_at = max(time.perf_counter(), self._free_at) + count * self.seconds_per_byte
            self._held.put((self._free_at + hops * self.latency, enter, future))
        return Held(future)

    @torch.no_grad()
    def _release(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        while True:
            arrives_at, enter, future = self._held.get()
            time.sleep(max(0.0, arrives_at - time.perf_counter()))
            try:
                future.set_result(enter())
            except BaseException as error:
                future.set_exception(error)


class Held:
    """A collective whose bytes are on their way; waiting raises what it ran into."""

    def __init__(self, future: "Future[Any]") -> None:
        self.future = future

    def wait(self) -> None:
        """Until it is over."""
        self.future.result().wait()
