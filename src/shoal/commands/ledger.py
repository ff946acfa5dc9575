"""Prove that a run has read every sample it should have, and none twice, over all its sessions.

    shoal ledger runs/demo

Every rank enters what it really reads into the run's ledger.json and its checkpoints. Here that is compared with the order
of samples, computed anew, and every sample is counted. With exit code 1 it names what was lost or repeated: which samples,
at which steps, by which rank of which session.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from shoal.core.errors import InputError, ShoalError
from shoal.core.run_directory import RunDirectory
from shoal.data.audit import Audit, audit
from shoal.data.ledger import Ledger, is_earlier, ledger_from, ledger_tree, read_ledger
from shoal.train.checkpoint import newest_state

FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal ledger`."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Audit the run's ledger; `ShoalError` when something was lost or repeated, or can't be proven."""
    folder = RunDirectory(arguments.run)
    ledger = _read(folder)
    found = audit(ledger)
    note, fault = _compare_with_checkpoint(folder, ledger)
    if fault:
        found.faults.append(fault)
    facts = _facts(folder, ledger, found, note)
    summary = f"{found.consumed:,} samples consumed, {found.lost:,} lost, {found.repeated:,} repeated"
    if found.unproven:
        summary += f", {found.unproven:,} unproven"
    if not arguments.json:
        _tell(folder, ledger, found, note, summary)
    if found.faults:
        if arguments.json:
            print(json.dumps(facts, ensure_ascii=False))  # noqa: T201
        raise ShoalError(f"{folder.ledger}: {len(found.faults)} fault{'s' if len(found.faults) > 1 else ''}; {summary}")
    return facts


def _read(folder: RunDirectory) -> Ledger:
    if not folder.ledger.exists():
        if not folder.root.is_dir():
            raise InputError(f"{folder.root}: no such folder")
        if not folder.metrics.exists():
            raise InputError(f"{folder.root}: not a run's folder (no {folder.ledger.name}, no {folder.metrics.name})")
        raise InputError(
            f"{folder.ledger}: no such file; a run writes it with every checkpoint, so none was saved, or it was removed"
        )
    return read_ledger(folder.ledger)


def _compare_with_checkpoint(folder: RunDirectory, ledger: Ledger) -> tuple[str, str]:
    """(what is to be told, what is wrong) about the ledger in the newest checkpoint; empty for nothing."""
    newest = newest_state(folder.checkpoints)
    if newest is None:
        return "there is no whole checkpoint to compare it with", ""
    path, state = newest
    if "ledger" not in state["batches"]:
        return "", f"{path.name} holds no ledger"
    saved = ledger_from(state["batches"]["ledger"], path)
    if saved == ledger:
        return f"{path.name} holds the same", ""
    places = f"{path.name} (up to position {saved.position}) and {folder.ledger.name} (up to {ledger.position})"
    if is_earlier(saved, ledger):  # it is written first
        return f"{places}: the run is saving, or was killed while it did, and would go on from the former", ""
    return "", f"{places} disagree: one of them is of another run, or was changed"


def _facts(folder: RunDirectory, ledger: Ledger, found: Audit, note: str) -> dict[str, Any]:
    return {
        "run": str(folder.root),
        "consumed": found.consumed,
        "lost": found.lost,
        "repeated": found.repeated,
        "unproven": found.unproven,
        "epochs": ledger.position / ledger.samples,
        "epochs_of": {name: epochs for name, epochs, _ in _parts(ledger) if name},
        "faults": found.faults,
        "checkpoint": note,
        "ledger": ledger_tree(ledger),
    }


def _parts(ledger: Ledger) -> list[tuple[str, float, int]]:
    """(name, epochs read, samples) of each corpus."""
    read = ledger.order.read_before(ledger.position)
    return [(part.name, count / part.samples, part.samples) for part, count in zip(ledger.order.parts, read, strict=True)]


def _tell(folder: RunDirectory, ledger: Ledger, found: Audit, note: str, summary: str) -> None:
    console = Console(highlight=False)
    table = Table("session", "ranks", "steps", "positions", "samples a rank", "verdict", box=None)
    for entry, sound in zip(ledger.entries, found.sound, strict=True):
        counts = sorted({share.count for share in entry.ranks})
        table.add_row(
            str(entry.session),
            str(len(entry.ranks)),
            f"{entry.first_step:,}–{entry.last_step:,}",
            f"{entry.first_position:,}–{entry.end_position - 1:,}",
            "–".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1]))),
            "[green]as planned" if sound else "[red]not as planned",
        )
    console.print(table)
    for fault in found.faults[:FAULTS_SHOWN]:
        console.print(f"[red]✗[/red] {fault}")
    if len(found.faults) > FAULTS_SHOWN:
        console.print(f"and {len(found.faults) - FAULTS_SHOWN:,} more (--json has them all)")
    if note:
        console.print(note)
    epochs = ", ".join(
        f"{epochs:.2f} epochs of {samples:,} samples{f' of {name}' if name else ''}"
        for name, epochs, samples in _parts(ledger)
    )
    console.print(f"[bold]{summary}[/bold] ({epochs})")
