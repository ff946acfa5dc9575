"""Measure this build on this machine: so far, whether every division of the work gives the same training.

    shoal bench parity
    shoal bench parity --ranks 2 --json

Each case trains a small model for 20 steps over real ranks and compares losses, gradient norms and weights with a plain
training in fp64. It fails when one differs by more than 1e-5.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from shoal.core.errors import InputError, ShoalError
from shoal.core.files import read_json, write_json
from shoal.parallel.launch import launch
from shoal.parallel.world import is_rank, join
from shoal.train import parity


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal bench`."""

    what: Annotated[Literal["parity"], tyro.conf.Positional]
    """`parity`: every division of the work against plain training in fp64."""
    ranks: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks to try."""
    scratch: Path | None = None
    """For the ranks that this starts: where they leave what they found."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any] | None:
    """Try all cases; returns their differences. `ShoalError` when one is not the same training."""
    if arguments.scratch is not None and is_rank():
        _as_rank(arguments.scratch)
        return None
    possible = sorted({case.ranks for case in parity.CASES})
    if not arguments.ranks or not set(arguments.ranks) <= set(possible):
        raise InputError(f"--ranks is {' '.join(map(str, arguments.ranks))}; accepted: {', '.join(map(str, possible))}")
    rows: list[dict[str, Any]] = []
    for size in arguments.ranks:
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            launch(size, ["bench", "parity", "--scratch", folder])
            rows += read_json(Path(folder) / "found.json")
    if not arguments.json:
        _show(rows)
    wrong = [f"{row['case']} on {row['ranks']}" for row in rows if not row["same"]]
    if wrong:
        raise ShoalError(f"not the same training: {', '.join(wrong)}")
    return {"tolerance": parity.TOLERANCE, "cases": rows}


def _as_rank(scratch: Path) -> None:
    with join("cpu", threads=1) as world:
        reference = parity.reference() if world.is_main else None
        rows = []
        for number, case in enumerate(case for case in parity.CASES if case.ranks == world.size):
            trace = parity.trace(world, case, scratch / str(number))
            if trace is not None and reference is not None:
                difference = parity.Difference.between(trace, reference)
                rows.append({"case": case.name, "ranks": case.ranks, **asdict(difference), "same": difference.fine})
        if world.is_main:
            write_json(scratch / "found.json", rows)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("ranks", "division", "loss", "gradient norm", "weights", "", box=None)
    table.title = f"largest relative difference from plain training in fp64, {parity.STEPS} steps"
    for row in rows:
        numbers = (f"{row[key]:.1e}" for key in ("loss", "norm", "weights"))
        table.add_row(str(row["ranks"]), row["case"], *numbers, "same" if row["same"] else "[bold red]DIFFERENT[/]")
    Console(highlight=False).print(table)
