"""How fast the link between the ranks is, measured by using it: at start, in a few seconds at most, whatever the link.

Latency comes from sums of one number, which pass 2 (N − 1) times from rank to rank; bandwidth from exchanges of a message
that grows until it takes long enough to be told from the latency. All ranks get the numbers of the slowest.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.parallel.wire import Wire

LONG_ENOUGH = 0.15
"""Seconds that an exchange must take to tell the bandwidth."""

FIRST_BYTES, MOST_BYTES = 1 << 13, 1 << 24
"""The first takes 70 ms at 1 Mbit/s, and what the last does not tell from nothing needs no care."""

TRIES = 5


@dataclass(frozen=True)
class Link:
    """What a rank's link carries: bytes a second of messages, and seconds from sending to receiving."""

    bandwidth: float
    latency: float

    def seconds(self, count: float, hops: int = 1) -> float:
        """For so many bytes, and messages that wait for each other."""
        return count / self.bandwidth + hops * self.latency


def measure(wire: Wire) -> Link:
    """The slowest rank's bandwidth and latency; every rank must call it, and there must be several."""
    number = torch.zeros(1, device=wire.world.device)
    wire.sum(number)  # connections are made, and all are here
    ranks = wire.everyone.size
    latency = min(_slowest(wire, lambda: wire.sum(number)) for _ in range(TRIES)) / (2 * (ranks - 1))
    count = FIRST_BYTES
    # the first of a size may find new memory, other programs, a lost packet, a connection not yet as fast as it can be
    while (seconds := _exchange(wire, count, tries=1)) <= LONG_ENOUGH or _exchange(wire, count, tries=1) <= LONG_ENOUGH:
        if count >= MOST_BYTES:
            break
        count *= 4
    seconds = min(seconds, _exchange(wire, count, TRIES if seconds <= LONG_ENOUGH else 1))
    return Link(count / max(seconds - latency, 1e-9), latency)


def _exchange(wire: Wire, count: int, tries: int) -> float:
    """Seconds in which each rank sends so many bytes, divided over all others; of several tries, the fastest."""
    axis = wire.everyone
    pieces = torch.zeros(axis.size, count // (axis.size - 1), dtype=torch.uint8, device=wire.world.device)
    received = torch.zeros_like(pieces)
    return min(_slowest(wire, lambda: wire.finish(wire.start_all_to_all(received, pieces, axis))) for _ in range(tries))


def on_one_machine(wire: Wire) -> bool:
    """Whether all ranks talk inside one machine, and none throttles itself; hosts in namespaces count as machines."""
    if wire.throttle is not None:
        return False
    return len(set(wire.gather_objects(_machine()))) == 1


def _machine() -> str:
    boot, network = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")
    here = boot.read_text().strip() if boot.exists() else socket.gethostname()
    return f"{here} {network.readlink()}" if network.is_symlink() else here


def _slowest(wire: Wire, call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    seconds = torch.tensor(time.perf_counter() - began, dtype=torch.float64, device=wire.world.device)
    return wire.largest(seconds, wire.everyone).item()
