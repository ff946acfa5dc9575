"""A run that loses ranks goes on with those it has left.

When a rank dies, the launcher ends the others, and the run is formed again from the last whole checkpoint with one rank
fewer: data and schedule depend on the step alone, so only the work since that checkpoint is done twice. An error that a
rank told by itself (a wrong input, a loss that has diverged) would come again, and ends the run. Under torchrun with
--max-restarts the agent starts the ranks again, as many as before, and they go on by themselves.
"""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from shoal.core.errors import InputError, Interrupted, RankError
from shoal.core.files import write_text
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.launch import RanksLostError, launch
from shoal.train.strategies import mesh_sizes

FAILURES_WITHOUT_PROGRESS = 3
"""How often in a row ranks may be lost before a new step or checkpoint, until the cause is taken for one that stays."""

TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Workers:
    """How many ranks to start, and with how few the run may go on; `elastic`: whether it goes on at all."""

    least: int
    most: int
    elastic: bool

    @classmethod
    def parse(cls, text: str) -> "Workers":
        """`N`, or `LEAST:MOST`; `InputError` for anything else."""
        found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
        least = int(found[1]) if found else 0
        most = int(found[2] or least) if found else 0
        if not 1 <= least <= most:
            raise InputError(f"--workers is {text}; accepted: a whole number above 0, or LEAST:MOST, such as 1:4")
        return cls(least, most, ":" in text)

    def check(self, recipe: Recipe) -> None:
        """Raise `InputError` where a run could not be formed again as this promises."""
        if not self.elastic:
            return
        self.sizes(recipe)
        given = f"--workers is {self.least}:{self.most}"
        if not recipe.checkpoint.every:
            raise InputError(f"{given}, but checkpoint.every is 0: there would be nothing to go on from; set it")
        start = recipe.schedule.batch_start
        if (start or recipe.train.global_batch) < self.most:
            least = f"schedule.batch_start is {start}" if start else f"train.global_batch is {recipe.train.global_batch}"
            raise InputError(f"{given}, but {least}, less than one sequence for each of {self.most} ranks")

    def sizes(self, recipe: Recipe) -> list[int]:
        """The numbers of ranks that the recipe's division allows, most first; `InputError` when the most are not allowed."""
        mesh_sizes(recipe, self.most)
        allowed = []
        for size in range(self.most, self.least - 1, -1):
            with suppress(InputError):
                mesh_sizes(recipe, size)
                allowed.append(size)
        return allowed


def launch_elastic(sizes: Sequence[int], words: list[str], run: RunDirectory, resume: bool) -> list[str]:
    """Run `shoal WORDS` to its end over as many ranks as there are; returns what was told about those that were lost.

    `sizes` are the numbers of ranks that may train together, most first; the last is held however many are lost. Raises
    what ends the run: `RankError` with a rank's own message or after too many losses, `Interrupted`.
    """
    size, failures = sizes[0], 0
    told: list[str] = []
    saved, furthest = newest_checkpoint(run), last_step(run)
    asked: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    # for between one launch and the next: a launch has handlers of its own
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not asked:
            lost = _launch(size, [*words, "--resume"] if resume else words)
            if lost is None:
                return told
            reached, newest = last_step(run), newest_checkpoint(run)
            has_moved = reached > furthest or (newest or 0) > (saved or 0)
            failures = 0 if has_moved else failures + 1
            if failures == FAILURES_WITHOUT_PROGRESS:
                raise RankError(f"ranks were lost {failures} times in a row without a new step; at last: {lost}")
            saved, furthest = newest, max(furthest, reached)
            left = size - len(lost.ranks)
            size, resume = next((other for other in sizes if other <= left), sizes[-1]), newest is not None
            where = f"step {newest}" if newest is not None else "the beginning"
            told.append(f"{lost.reason} at step {reached}; going on with {size} rank{'s' * (size > 1)} from {where}")
            _tell(told[-1])
        raise KeyboardInterrupt
    except (Interrupted, KeyboardInterrupt) as stopped:
        # a rank that has saved said so; where ranks were lost at the same time, none could
        raise stopped if str(stopped) or not told else Interrupted("interrupted; --resume goes on") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _launch(size: int, words: list[str]) -> RanksLostError | None:
    try:
        launch(size, words)
    except RanksLostError as lost:
        # let go of the agent here: a signal that comes while it is destroyed can't be raised from there
        lost.__context__ = None
        return lost.with_traceback(None)
    return None


def newest_checkpoint(run: RunDirectory) -> int | None:
    """Step of the newest checkpoint that was finished."""
    steps = [int(path.parent.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*/manifest.json")]
    return max(steps, default=None)


def last_step(run: RunDirectory) -> int:
    """The last step that the run's metrics tell of, 0 where there is none; reads their end only."""
    if not run.metrics.exists():
        return 0
    with run.metrics.open("rb") as file:
        file.seek(max(0, run.metrics.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # cut short by the crash, or by where reading began
            continue
    return 0


def mark_job(run: RunDirectory) -> None:
    """Remember that this run belongs to torchrun's job, so that its ranks, started again, may go on without being told."""
    if (job := _job()) is not None:
        write_text(run.root / ".job", job)


def is_of_this_job(run: RunDirectory) -> bool:
    """Whether torchrun has started this rank again, for a run that its predecessor began."""
    mark = run.root / ".job"
    return mark.exists() and mark.read_text() == _job()


def _job() -> str | None:
    """The agent whose ranks these are: it stays when they are started again (its count of restarts is a machine's own)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = os.getppid()
    try:  # ids of processes come again, with another start
        began = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = ""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {agent} {began}"


def _tell(text: str) -> None:
    Console(stderr=True).show_cursor()  # a killed rank's progress bar has hidden it
    print(f"shoal: {text}", file=sys.stderr, flush=True)  # noqa: T201
