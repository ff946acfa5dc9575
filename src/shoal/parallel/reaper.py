"""Ends what is left of a group of ranks in which one has failed.

The elastic agent asks the others to leave, and waits half a minute; one that is stopped, or hangs in a collective, never
answers. Here a thread of the launcher's gives them some seconds, and kills what is left. While the user's stop is being
obeyed, the main rank may be saving for as long as it takes: then nothing is ended before it has left.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.core.errors import Interrupted

GRACE_SECONDS = 10.0
"""How long ranks may take to leave by themselves when another has failed."""

STOP_MARK = "stop"
"""File in the launcher's folder which says that the user asked for a stop."""


@contextmanager
def presence(folder: Path, rank: int) -> Iterator[None]:
    """While inside, `folder` tells this rank's process id; what a process leaves there died without a word."""
    path = folder / f"rank-{rank}.pid"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(str(os.getpid()))
    temporary.rename(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def reaping(folder: Path) -> Iterator[set[int]]:
    """Watch the ranks that are present in `folder`; yields the set of those that had to be killed."""
    killed: set[int] = set()
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, killed, ended), name="reaper", daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def _watch(folder: Path, killed: set[int], ended: threading.Event) -> None:
    failed_at: float | None = None
    while not ended.wait(0.2):
        present = _present(folder)
        if failed_at is None:
            failed_at = time.monotonic() if _has_failed(folder, present) else None
        elif time.monotonic() - failed_at > GRACE_SECONDS:
            for rank, process in present.items():
                if _signal(process, signal.SIGKILL):
                    killed.add(rank)
            return


def _has_failed(folder: Path, present: dict[int, int]) -> bool:
    if (folder / STOP_MARK).exists():
        return 0 not in present or not _is_alive(present[0])
    messages = (json.loads(path.read_text()) for path in folder.glob("rank-*.json"))
    return any(message["exit_code"] != Interrupted.exit_code for message in messages) or not all(
        _is_alive(process) for process in present.values()
    )


def _present(folder: Path) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for path in folder.glob("rank-*.pid"):
        try:
            found[int(path.stem.removeprefix("rank-"))] = int(path.read_text())
        except FileNotFoundError:  # it has just left
            continue
    return found


def _is_alive(process: int) -> bool:
    return _signal(process, 0)


def _signal(process: int, number: int) -> bool:
    """Whether there was such a process to send it to."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True
