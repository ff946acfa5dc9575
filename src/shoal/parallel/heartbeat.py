"""Signs of life: every rank tells the others how far it is, so that a stuck collective can name who is missing.

Each rank writes one short line about it into the store at which the ranks met, at every step and from a thread every
second, without waiting for an answer (10 µs). Nothing is read until a collective fails. A stopped process tells nothing any
more, whichever line it was stopped at; a rank that is alive but late is behind in the count of collectives. Ages are by the
ranks' clocks, which must agree to within half the time limit.
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from shoal.core.errors import RankError

READING_SECONDS = 3.0
"""How long to wait for the store's answer, whose process may be the one that is stopped."""


PREFIX = "shoal/alive/"


class StalledError(RankError):
    """A collective waited for ranks that did not arrive in time; `missing` names them."""

    def __init__(self, message: str, missing: list[int]) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True)
class Sign:
    """What a rank told last: its step, how many collectives it has entered, when (Unix s), and whether it is leaving."""

    step: int
    collectives: int
    entered: float
    told: float
    leaving: bool = False


class Heartbeat:
    """This rank's signs, and those of all others. `timeout` (s) is how long a collective may take."""

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.step = self.collectives = 0
        self.entered = time.time()
        self._leaving = False
        # another connection to the store that the process group uses: a wait on that one would hold up this
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=READING_SECONDS)
        self._store = TCPStore(address, port, None, False, timeout=limit, wait_for_workers=False)
        self._ended = threading.Event()
        self._tell()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def at_step(self, step: int) -> None:
        """This rank begins a step."""
        self.step = step
        self._tell()

    def arrive(self) -> None:
        """This rank enters a collective."""
        self.collectives += 1
        self.entered = time.time()

    def stop(self) -> None:
        """End the thread; the store may be gone after this."""
        self._ended.set()
        self._thread.join(1)

    def find_stall(self) -> StalledError | None:
        """Whom this rank, whose collective has failed, waited for in vain; None when it failed before its time was up."""
        waited = time.time() - self.entered
        self._leaving = True  # others must not take this one for missing, which stops waiting a moment before them
        if waited < self.timeout / 2:
            return None
        moment = time.time()
        signs = self._read()
        where = f"at step {self.step}" if self.step else "before the first step"
        if signs is None:
            keeper = "the launcher" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
            text = f"waited {waited:.0f} s {where} in vain, and {keeper}, which knows how far each rank is, does not answer"
            return StalledError(text, [0] if keeper == "rank 0" else [])
        missing = find_missing(signs, self.rank, self.collectives, moment, self.timeout / 2)
        if not missing:
            return None
        told = "; ".join(_describe(rank, signs[rank], self.step, moment, self.timeout / 2) for rank in missing)
        return StalledError(f"waited {waited:.0f} s (parallel.timeout) in vain: {told}", missing)

    def _beat(self) -> None:
        while not self._ended.wait(min(1.0, self.timeout / 10)):
            self._tell()

    def _tell(self) -> None:
        if self._ended.is_set():
            return
        sign = Sign(self.step, self.collectives, self.entered, time.time(), self._leaving)
        try:
            self._store.set(f"{PREFIX}{self.rank}", json.dumps(asdict(sign)))
        except RuntimeError:  # the store's process has left, which the next collective will notice
            self._ended.set()

    def _read(self) -> dict[int, Sign] | None:
        """All signs by rank; None when the store does not answer."""
        signs: dict[int, Sign] = {}
        done = threading.Event()

        def read() -> None:
            try:
                self._tell()
                for rank in range(self.size):
                    key = f"{PREFIX}{rank}"
                    if self._store.check([key]):
                        signs[rank] = Sign(**json.loads(self._store.get(key)))
            except RuntimeError:
                return
            done.set()

        # reading from a stopped process has no time limit of its own
        threading.Thread(target=read, daemon=True).start()
        return signs if done.wait(READING_SECONDS) else None


def find_missing(signs: dict[int, Sign], rank: int, collectives: int, moment: float, limit: float) -> list[int]:
    """Which ranks `rank`, in its `collectives`-th collective at `moment`, waits for: silent for `limit` seconds, or behind.

    One that is both goes before the others: who waits for it too may be one collective behind.
    """
    others = {other: sign for other, sign in signs.items() if other != rank and not sign.leaving}
    silent = {other for other, sign in others.items() if moment - sign.told > limit}
    behind = {other for other, sign in others.items() if sign.collectives < collectives}
    return sorted((silent & behind) or silent or behind)


def _describe(rank: int, sign: Sign, step: int, moment: float, limit: float) -> str:
    where = f"step {step}" if step else "the first step"
    silent = moment - sign.told > limit
    age = moment - (sign.told if silent else sign.entered)
    state = "silent since: it is stopped, or its machine is gone" if silent else "alive, but stuck or very slow"
    seen = f"at step {sign.step}" if sign.step else "before the first step"
    return f"rank {rank} has not arrived at {where} (it was last seen {seen}, {age:.0f} s ago; {state})"
