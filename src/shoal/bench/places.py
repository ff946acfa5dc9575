"""Where ranks run, and running one on each: on hosts of their own, or all on this one."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Protocol

from shoal.bench.hosts import hosts
from shoal.core.errors import ShoalError

HOST_PORT = 29_500
"""Where ranks on hosts of their own meet: nobody else is there."""


class RanksFailed(ShoalError):
    """Ranks that a bench has started ended with an error."""


class Place(Protocol):
    """Where a rank runs, and how others find it."""

    @property
    def address(self) -> str:
        """Where the others reach it."""
        ...

    def command(self, words: list[str]) -> list[str]:
        """Words that run `words` there."""
        ...


@dataclass(frozen=True)
class Here:
    """This host."""

    address: str = "127.0.0.1"

    def command(self, words: list[str]) -> list[str]:
        """As they are."""
        return words


@contextmanager
def places(number: int, megabits: float, namespaces: bool) -> Iterator[Sequence[Place]]:
    """So many hosts with such a link, or this one as often, where ranks must throttle themselves."""
    if not namespaces:
        yield [Here()] * number
        return
    with hosts(number, megabits) as found:
        yield found


def run_ranks(
    where: Sequence[Place], words: Callable[[int], list[str]], alone: bool = False, python: str = sys.executable
) -> list[str]:
    """Run `python WORDS(rank)` as one rank at each place, one core each; what they printed, by rank.

    `alone`: each is its own world. `RanksFailed` with what the first that failed had to say.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    port = HOST_PORT if where[0].address != Here().address else _free_port()
    interface = {"GLOO_SOCKET_IFNAME": "eth0"} if where[0].address != Here().address else {}
    running: list[tuple[subprocess.Popen[str], IO[str], IO[str]]] = []
    try:
        for rank, place in enumerate(where):
            told: dict[str, object] = {
                "RANK": 0 if alone else rank,
                "WORLD_SIZE": 1 if alone else len(where),
                "LOCAL_RANK": 0,
                "LOCAL_WORLD_SIZE": 1,
                "MASTER_ADDR": where[0].address,
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1,
            }
            bound = ["taskset", "-c", str(cores[rank % len(cores)])] if cores else []
            out, err = _scratch(), _scratch()
            process = subprocess.Popen(
                place.command([*bound, python, *words(rank)]),
                env={**os.environ, **interface, **{key: str(value) for key, value in told.items()}},
                stdout=out,
                stderr=err,
                text=True,
            )
            running.append((process, out, err))
        _wait(running)
        return [_all_of(out) for _, out, _ in running]
    finally:
        for process, out, err in running:
            process.kill()
            process.wait()
            out.close()
            err.close()


def _wait(running: list[tuple["subprocess.Popen[str]", IO[str], IO[str]]]) -> None:
    left = dict(enumerate(running))
    while left:
        for rank, (process, _, err) in list(left.items()):
            if process.poll() is None:
                continue
            del left[rank]
            if process.returncode:
                said = "\n".join(_all_of(err).splitlines()[-20:])
                raise RanksFailed(f"rank {rank} ended with exit code {process.returncode}:\n{said}")
        time.sleep(0.02)


def _scratch() -> IO[str]:
    return tempfile.TemporaryFile("w+")


def _all_of(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((Here().address, 0))
        return int(probe.getsockname()[1])
