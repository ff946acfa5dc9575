"""Where ranks run, and running one on each: on hosts of their own, or all on this one."""

import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
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


class Running:
    """Words that run at a place until they end or the context does, with what they are `told` in their environment.

    `core`: the number of the one that they have (None: all). `patience`: seconds in which they may stop by themselves what
    they have started.
    """

    def __init__(
        self, place: Place, core: int | None, words: list[str], told: Mapping[str, object], patience: float = 0.0
    ) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        bound = ["taskset", "-c", str(cores[core % len(cores)])] if cores and core is not None else []
        self.patience, self._out, self._err = patience, _scratch(), _scratch()
        self.process = subprocess.Popen(
            place.command([*bound, *words]),
            env={**os.environ, **{key: str(value) for key, value in told.items()}},
            stdout=self._out,
            stderr=self._err,
            text=True,
        )

    def __enter__(self) -> "Running":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        if self.patience:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self.patience)
        self.process.kill()
        self.process.wait()
        self._out.close()
        self._err.close()

    def printed(self) -> str:
        """All that it printed."""
        return _all_of(self._out)

    def said(self) -> str:
        """The last that it told of errors."""
        return "\n".join(_all_of(self._err).splitlines()[-20:])


def run_ranks(
    where: Sequence[Place], words: Callable[[int], list[str]], alone: bool = False, python: str = sys.executable
) -> list[str]:
    """Run `python WORDS(rank)` as one rank at each place, one core each; what they printed, by rank.

    `alone`: each is its own world. `RanksFailed` with what the first that failed had to say.
    """
    port = HOST_PORT if where[0].address != Here().address else _free_port()
    interface = {"GLOO_SOCKET_IFNAME": "eth0"} if where[0].address != Here().address else {}
    with ExitStack() as ranks:
        running = []
        for rank, place in enumerate(where):
            told: dict[str, object] = {
                **interface,
                "RANK": 0 if alone else rank,
                "WORLD_SIZE": 1 if alone else len(where),
                "LOCAL_RANK": 0,
                "LOCAL_WORLD_SIZE": 1,
                "MASTER_ADDR": where[0].address,
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1,
            }
            running.append(ranks.enter_context(Running(place, rank, [python, *words(rank)], told)))
        wait_for(running)
        return [process.printed() for process in running]


def wait_for(running: Sequence[Running], beside: Sequence[Running] = (), longest: float = math.inf) -> None:
    """Until all have ended; `RanksFailed` when one fails, one of those `beside` them ends, or it takes too many seconds."""
    left, ends = dict(enumerate(running)), time.monotonic() + longest
    while left:
        for rank, one in [*left.items()]:
            if one.process.poll() is None:
                continue
            del left[rank]
            if one.process.returncode:
                raise RanksFailed(f"rank {rank} ended with exit code {one.process.returncode}:\n{one.said()}")
        for one in beside if left else ():
            if one.process.poll() is not None:
                raise RanksFailed(f"ended before the others, with exit code {one.process.returncode}:\n{one.said()}")
        if time.monotonic() > ends:
            raise RanksFailed(f"not done in {longest:g} seconds:\n{next(iter(left.values())).said()}")
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
