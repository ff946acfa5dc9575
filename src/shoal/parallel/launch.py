"""Start N ranks on this machine, through torch's elastic agent, and end them together.

A rank that fails leaves its message in a folder that the launcher made; the launcher stops the others and raises the
message of the rank that failed by itself, not of those that lost contact because of it. The first SIGINT or SIGTERM
means "save and leave" to every rank, and later ones change nothing. The agent also sends SIGTERM when another rank has
failed: `stop_is_asked_for` tells the two apart.
"""

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from shoal.core.errors import Interrupted, RankError
from shoal.core.files import write_json
from shoal.core.machine import cores

ERROR_FOLDER = "SHOAL_ERROR_FOLDER"
"""Environment variable that tells a rank where to leave its message; set only under this launcher."""

STOP_MARK = "stop"
"""File in that folder which says that the user asked for a stop."""

SAVING_SECONDS = 3600
"""How long interrupted ranks may take to save before they are killed."""


def launch(workers: int, arguments: Sequence[str]) -> None:
    """Run `shoal ARGUMENTS` as `workers` ranks and wait for them.

    Raises `RankError` with the failing rank's message, or `Interrupted`.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        os.environ[ERROR_FOLDER] = folder
        before = {number: signal.signal(number, _pass_on_once()) for number in (signal.SIGINT, signal.SIGTERM)}
        # the ranks set their own number of threads; without this, libraries warn or start one thread a core
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id="shoal",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.1,
            signals_to_handle="SIGHUP,SIGQUIT",
            shutdown_timeout=SAVING_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "shoal", *arguments)
        except ChildFailedError as error:
            raise _first_failure(Path(folder), error.failures) from None
        except SignalException:
            raise _first_failure(Path(folder), {}) from None
        finally:
            del os.environ[ERROR_FOLDER]
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_message(rank: int, text: str, exit_code: int, *, secondary: bool) -> bool:
    """Leave a failing rank's message for the launcher; False when there is none to read it.

    `secondary`: this rank failed only because another did.
    """
    folder = os.environ.get(ERROR_FOLDER)
    if folder is None:
        return False
    content = {"rank": rank, "message": text, "exit_code": exit_code, "secondary": secondary}
    write_json(Path(folder) / f"rank-{rank}.json", content)
    return True


def stop_is_asked_for() -> bool:
    """Whether the user, and not a failing rank, is why this launcher's ranks are told to stop."""
    folder = os.environ.get(ERROR_FOLDER)
    return folder is None or (Path(folder) / STOP_MARK).exists()


def _pass_on_once() -> Callable[[int, FrameType | None], None]:
    """A handler that raises at the first signal only: a second one must not cut short what the first has begun."""

    def handle(number: int, frame: FrameType | None) -> None:
        mark = Path(os.environ[ERROR_FOLDER]) / STOP_MARK
        if not mark.exists():
            mark.touch()
            raise SignalException("stop", sigval=signal.SIGINT)

    return handle


def _first_failure(folder: Path, failures: dict[int, ProcessFailure]) -> RankError | Interrupted:
    messages = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    interrupted = [message for message in messages if message["exit_code"] == Interrupted.exit_code]
    others = [message for message in messages if message not in interrupted]
    # a rank that failed by itself, before those that only lost contact with it
    for message in sorted(others, key=lambda message: message["secondary"]):
        if message["secondary"] and (interrupted or _killed(failures)):
            continue
        error = RankError(f"rank {message['rank']}: {message['message']}")
        error.exit_code = message["exit_code"]
        return error
    for rank, failure in _killed(failures).items():
        name = signal.Signals(-failure.exitcode).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return RankError(f"rank {rank} was killed by {name}{hint}. --resume goes on from the last checkpoint")
    if interrupted or not failures:
        return Interrupted("")
    rank, failure = next(iter(failures.items()))
    return RankError(f"rank {rank} ended with exit code {failure.exitcode} and left no message")


def _killed(failures: dict[int, ProcessFailure]) -> dict[int, ProcessFailure]:
    return {rank: failure for rank, failure in failures.items() if failure.exitcode < 0}
