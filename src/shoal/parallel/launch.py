"""Start N ranks on this machine, through torch's elastic agent, and end them together.

A rank that fails leaves its message in a folder that the launcher made; the launcher stops the others and raises the
message of the rank that failed by itself, not of those that lost contact because of it; what does not leave is killed
(`parallel.reaper`). The first SIGINT or SIGTERM
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
from shoal.parallel.reaper import STOP_MARK, reaping

ERROR_FOLDER = "SHOAL_ERROR_FOLDER"
"""Environment variable that tells a rank where to leave its message; set only under this launcher."""

ADVICE = "--resume goes on from the last checkpoint"

SAVING_SECONDS = 3600
"""How long interrupted ranks may take to save before they are killed."""


class RanksLostError(RankError):
    """Ranks died or stopped answering, which need not happen again: `ranks`, and in `reason` what happened to them."""

    def __init__(self, ranks: list[int], reason: str, message: str) -> None:
        super().__init__(message)
        self.ranks, self.reason = ranks, reason


def launch(workers: int, arguments: Sequence[str]) -> None:
    """Run `shoal ARGUMENTS` as `workers` ranks and wait for them.

    Raises `RankError` with the failing rank's message, `RanksLostError` when ranks died, or `Interrupted`.
    """
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        os.environ[ERROR_FOLDER] = folder
        before = {number: signal.signal(number, _pass_on_once()) for number in (signal.SIGINT, signal.SIGTERM)}
        # the ranks set their own number of threads; without this, libraries warn or start one thread a core
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = threads or str(max(1, cores() // workers))
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
            with reaping(Path(folder)) as reaped:
                elastic_launch(config, sys.executable)("-m", "shoal", *arguments)
        except ChildFailedError as error:
            died = {rank: failure for rank, failure in error.failures.items() if rank not in reaped}
            raise _first_failure(Path(folder), died) from None
        except SignalException:
            stopped = _first_failure(Path(folder), {})
            raise RankError(str(stopped)) if isinstance(stopped, RanksLostError) else stopped from None
        finally:
            del os.environ[ERROR_FOLDER]
            if threads is None:
                del os.environ["OMP_NUM_THREADS"]
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_message(rank: int, text: str, exit_code: int, *, secondary: bool, missing: Sequence[int] = ()) -> bool:
    """Leave a failing rank's message for the launcher; False when there is none to read it.

    `secondary`: this rank failed only because another did; `missing`: it waited for these in vain.
    """
    folder = os.environ.get(ERROR_FOLDER)
    if folder is None:
        return False
    content = {"rank": rank, "message": text, "exit_code": exit_code, "secondary": secondary, "missing": [*missing]}
    write_json(Path(folder) / f"rank-{rank}.json", content)
    return True


def stop_is_asked_for() -> bool:
    """Whether the user, and not a failing rank, is why this launcher's ranks are told to stop."""
    folder = os.environ.get(ERROR_FOLDER)
    return folder is None or (Path(folder) / STOP_MARK).exists()


def leave_early() -> None:
    """End this process at once, because another rank has failed and this one did not notice by itself."""
    leave_message(int(os.environ["RANK"]), "left because another rank has failed", 1, secondary=True)
    os._exit(1)


def _pass_on_once() -> Callable[[int, FrameType | None], None]:
    """A handler that raises at the first signal only: a second one must not cut short what the first has begun."""

    def handle(number: int, frame: FrameType | None) -> None:
        mark = Path(os.environ[ERROR_FOLDER]) / STOP_MARK
        if not mark.exists():
            mark.touch()
            raise SignalException("stop", sigval=signal.SIGINT)

    return handle


def _first_failure(folder: Path, failures: dict[int, ProcessFailure]) -> RankError | Interrupted:
    """What to tell: a rank's own error, before ranks that died, before those that only lost contact."""
    messages = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    interrupted = [message for message in messages if message["exit_code"] == Interrupted.exit_code]
    others = [message for message in messages if message not in interrupted]
    own = [message for message in others if not message["secondary"]]
    for message in sorted(own, key=lambda message: len(message["missing"])):
        text = f"rank {message['rank']}: {message['message']}"
        if missing := message["missing"]:
            return RanksLostError(missing, f"{_name(missing)} stopped answering", f"{text}. {ADVICE}")
        error = RankError(text)
        error.exit_code = message["exit_code"]
        return error
    if died := _died(failures, {message["rank"] for message in messages}):
        return died
    if interrupted or not failures:
        return Interrupted("")
    return RankError(f"rank {others[0]['rank']}: {others[0]['message']}")


def _died(failures: dict[int, ProcessFailure], spoken: set[int]) -> RanksLostError | None:
    """The ranks that ended without a word, by what ended the first of them."""
    codes = {rank: failure.exitcode for rank, failure in failures.items() if rank not in spoken}
    # SIGTERM is what the agent sends to the others, and ends those that have only begun
    by_themselves = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM} or codes
    if not by_themselves:
        return None
    code = next(iter(by_themselves.values()))
    ranks = sorted(rank for rank, other in by_themselves.items() if other == code)
    if code >= 0:
        reason = f"{_name(ranks)} ended with exit code {code} and left no message"
        return RanksLostError(ranks, reason, f"{reason}. {ADVICE}")
    name = signal.Signals(-code).name
    reason = f"{_name(ranks)} {'was' if len(ranks) == 1 else 'were'} killed by {name}"
    hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
    return RanksLostError(ranks, reason, f"{reason}{hint}. {ADVICE}")


def _name(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
