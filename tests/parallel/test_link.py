"""Bytes are counted as the network counts them, and a throttled link is as slow as a real one."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shoal.bench.hosts import hosts, reason_against
from shoal.bench.wire import KINDS, Found, Task, measure
from shoal.parallel.link import Link
from shoal.parallel.link import measure as measure_link
from shoal.parallel.throttle import FRAMING, Throttle
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import run_ranks

NO_HOSTS = reason_against()
needs_hosts = pytest.mark.skipif(NO_HOSTS is not None, reason=NO_HOSTS or "")


class Done:
    """A collective that is over as soon as it is entered."""

    def wait(self) -> None:
        self.entered = time.perf_counter()


def arrival_times(throttle: Throttle, sends: list[tuple[int, int]]) -> list[float]:
    """When sends of (bytes, hops), all begun now, are over, in seconds from now."""
    began = time.perf_counter()
    held = [throttle.send(count, hops, Done) for count, hops in sends]
    times = []
    for one in held:
        one.wait()
        times.append(time.perf_counter() - began)
    return times


def test_sends_share_one_link_and_their_latencies_overlap() -> None:
    throttle = Throttle(megabits=8 * FRAMING, latency=0.05, device=torch.device("cpu"))  # a million bytes a second
    first, second = arrival_times(throttle, [(100_000, 1), (50_000, 2)])
    assert first >= 0.15 and second >= 0.25  # no earlier; how much later is the machine's affair


def test_a_send_that_comes_when_the_link_is_free_does_not_wait_for_those_before() -> None:
    throttle = Throttle(megabits=8 * FRAMING, latency=0.0, device=torch.device("cpu"))
    arrival_times(throttle, [(2_000_000, 1)])
    began = time.perf_counter()
    arrival_times(throttle, [(50_000, 1)])
    assert time.perf_counter() - began < 2.0  # as it would be behind the first


def test_what_entering_runs_into_is_raised_by_waiting() -> None:
    def fail() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        Throttle(1.0, 0.0, torch.device("cpu")).send(1, 1, fail).wait()


class Stalling(Throttle):
    """Sends of so few bytes take no time, as where a link has saved up for them; but the first of these stalls."""

    stalled = False

    def send(self, count: int, hops: int, enter: Callable[[], Any]) -> Any:
        if count > 1 << 14:
            return super().send(count, hops, enter)
        hops = 1 if self.stalled or count < 1 << 12 else 400
        self.stalled |= hops > 1
        return super().send(0, hops, enter)


def measured_link(world: World) -> tuple[Link, bool]:
    throttle = Stalling(megabits=8 * FRAMING, latency=0.001, device=world.device)
    return measure_link(Wire(world, throttle=throttle)), throttle.stalled


def test_a_stall_makes_no_link_look_fast() -> None:
    for link, stalled in run_ranks(2, measured_link):
        assert stalled and link.bandwidth < 1.2e6


LISTEN = """
import socket
server = socket.create_server(("", 5000))
server.settimeout(60)
print(flush=True)
other = server.accept()[0]
while other.recv(1 << 16):
    pass
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000)) as other:
    other.settimeout(60)
    other.sendall(bytes(4_000_000))
"""


@needs_hosts
@pytest.mark.parametrize("megabits", [0, 100])
def test_what_tcp_hands_over_leaves_a_host_whole(megabits: float) -> None:
    """Cut into packets, each with a timer, it took ranks a quarter of their computing (bench/carrying.py)."""
    with hosts(2, megabits) as (one, other):
        with subprocess.Popen(one.command([sys.executable, "-c", LISTEN]), stdout=subprocess.PIPE) as listening:
            assert listening.stdout is not None
            listening.stdout.readline()
            subprocess.run(other.command([sys.executable, "-c", SEND, one.address]), check=True, timeout=90)
        packets = other.command(["cat", "/sys/class/net/eth0/statistics/tx_packets"])
        left = int(subprocess.run(packets, capture_output=True, text=True, check=True).stdout)
    assert 4_000_000 / left > 4 * 1_500


@needs_hosts
def test_bytes_counted_are_bytes_that_interfaces_send() -> None:
    found: list[Found] = measure(Task(KINDS, 1 << 20, repeats=12), ranks=2, namespaces=True)
    for rank, kinds in enumerate(found):
        for kind, row in kinds.items():
            # the rest is headers, connections, and the heartbeat
            margin = 0.03 * row["counted"] if row["counted"] > 1_000_000 else 30_000
            assert 0 <= row["sent"] - row["counted"] <= margin, (rank, kind, row)
