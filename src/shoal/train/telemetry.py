"""What a run tells: one JSON line a step, TensorBoard, and a live view for people."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from shoal.core.files import write_text
from shoal.core.run_directory import RunDirectory

Record = Mapping[str, Any]


class Telemetry:
    """Writes records; only the main rank has one that is not silent."""

    def __init__(self, run: RunDirectory, resume_step: int | None, expected_steps: int | None, quiet: bool) -> None:
        keep_until(run.metrics, resume_step)
        self.file: TextIO = run.metrics.open("a", encoding="utf-8", buffering=1)
        self.board = _Board(run.tensorboard)
        self.view = make_view(expected_steps, quiet)
        self.first_step_at = self.last_step_at = 0.0

    def step(self, record: Record, progress: float) -> None:
        """A training step's record, and the share of the run that is done."""
        self.last_step_at = time.time()
        self.first_step_at = self.first_step_at or self.last_step_at
        self._write(record)
        self.view.step(record, progress)

    def evaluation(self, record: Record) -> None:
        """An evaluation's record: its `step` and what begins with `eval_`."""
        self._write(record)
        self.view.evaluation(record)

    def note(self, text: str) -> None:
        """A line for people."""
        self.view.note(text)

    def close(self) -> None:
        """End the view and flush."""
        self.view.close()
        self.file.close()
        self.board.close()

    def _write(self, record: Record) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.board.add(record)


class Silence:
    """The telemetry of the other ranks."""

    first_step_at = last_step_at = 0.0

    def step(self, record: Record, progress: float) -> None:
        """Nothing."""

    def evaluation(self, record: Record) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training records, evaluation records); a last line that a crash cut short is left out."""
    training: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        (evaluations if "eval_loss" in record else training).append(record)
    return training, evaluations


def keep_until(path: Path, step: int | None) -> None:
    """Drop the records after `step`, which a resumed run will write again; None: drop all."""
    if not path.exists():
        return
    kept = [record for records in read_metrics(path) for record in records if step is not None and record["step"] <= step]
    kept.sort(key=lambda record: (record["step"], "eval_loss" in record))
    # whole or as before: a rank that is killed just now would take the run's whole history along
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


class _Board:
    """TensorBoard's writer, imported at the first flush: the import takes as long as several small steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending: list[tuple[float, Record]] = []
        self.flushed = time.monotonic()
        self.writer: Any = None

    def add(self, record: Record) -> None:
        self.pending.append((time.time(), record))
        if time.monotonic() - self.flushed > 30:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self.writer is not None:
            self.writer.close()

    def _flush(self) -> None:
        self.flushed = time.monotonic()
        if not self.pending:
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder))
        for moment, record in self.pending:
            kind = "evaluation" if "eval_loss" in record else "training"
            for key, value in record.items():
                if key != "step" and isinstance(value, int | float):
                    self.writer.add_scalar(f"{kind}/{key}", value, record["step"], walltime=moment)
        self.pending.clear()
        self.writer.flush()


def make_view(expected_steps: int | None, quiet: bool) -> "_Bar | _Lines":
    """A live bar on a terminal, lines elsewhere."""
    if not quiet and sys.stderr.isatty():
        return _Bar(expected_steps)
    return _Lines(quiet)


class _Lines:
    """One plain line every ten seconds, for logs."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.last = 0.0

    def step(self, record: Record, progress: float) -> None:
        if not self.quiet and (time.monotonic() - self.last > 10 or progress >= 1):
            self.last = time.monotonic()
            self.note(f"step {record['step']} ({progress:.0%})  {_describe(record)}")

    def evaluation(self, record: Record) -> None:
        self.note(_describe_evaluation(record))

    def note(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        pass


class _Bar:
    """Step, loss, tokens/s, MFU and time left, live."""

    def __init__(self, expected_steps: int | None) -> None:
        total = f"/{expected_steps}" if expected_steps else ""
        self.progress = Progress(
            TextColumn("[bold]step {task.fields[step]}" + total),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=Console(stderr=True),
            refresh_per_second=2,
            expand=True,
        )
        self.task = self.progress.add_task("training", total=1.0, step=0, numbers="starting …", began=None)
        self.progress.start()

    def step(self, record: Record, progress: float) -> None:
        began = self.progress.tasks[self.task].fields["began"]
        self.progress.update(
            self.task,
            completed=min(1.0, progress),
            step=record["step"],
            numbers=_describe(record),
            began=(time.monotonic(), progress) if began is None else began,
        )

    def evaluation(self, record: Record) -> None:
        self.note(_describe_evaluation(record))

    def note(self, text: str) -> None:
        self.progress.console.print(text, highlight=False)

    def close(self) -> None:
        self.progress.stop()


class _TimeLeft(ProgressColumn):
    """Time left by the share that is done: budgets may be in minutes."""

    def render(self, task: Task) -> Text:
        moment, share = task.fields["began"] or (0.0, 1.0)
        if task.completed <= share:
            return Text("left -:--", style="cyan")
        # counted from this session's first step on: a resumed run did not do the rest in this time
        seconds = int((time.monotonic() - moment) * (1 - task.completed) / (task.completed - share))
        return Text(f"left {seconds // 60}:{seconds % 60:02}", style="cyan")


def _describe(record: Record) -> str:
    mfu = f"  MFU {record['mfu']:.0%}" if record.get("mfu") else ""
    return f"loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tokens/s{mfu}"


def _describe_evaluation(record: Record) -> str:
    return f"step {record['step']}: held-out loss {record['eval_loss']:.4f}{describe_metrics(record)}"


def describe_metrics(evaluated: Record, digits: int = 3, split: str = "eval") -> str:
    """What an evaluation tells beside its loss, in words."""
    return "".join(f", {before}{value}{after}" for before, value, after in told_figures(evaluated, digits, split))


def told_figures(evaluated: Record, digits: int = 3, split: str = "eval") -> list[tuple[str, str, str]]:
    """(what stands before it, figure, what stands behind it) of what an evaluation tells beside its loss."""
    told = []
    for name, form in FIGURES.items():
        if f"{split}_{name}" in evaluated:
            before, after = form.index("{"), form.rindex("}") + 1
            value = form[before:after].format(evaluated[f"{split}_{name}"], digits=digits)
            told.append((form[:before], value, form[after:]))
    return told


FIGURES = {
    "perplexity": "perplexity {:,.2f}",
    "bpb": "{:.{digits}f} bits per byte",
    "accuracy": "{:.1%} right",
    "bleu": "BLEU {:.1f}",
    "chrf": "chrF {:.1f}",
    "rouge_1": "ROUGE-1 {:.{digits}f}",
    "rouge_2": "ROUGE-2 {:.{digits}f}",
    "rouge_l": "ROUGE-L {:.{digits}f}",
    "macro_f1": "macro-F1 {:.{digits}f}",
    "micro_f1": "micro-F1 {:.{digits}f}",
    "exact": "{:.1%} exact",
    "f1": "F1 {:.{digits}f}",
    "margin": "margin {:.{digits}f}",
    "win_rate": "{:.1%} won",
}
"""How figures of evaluations are told, without `eval_`; those that are not here stand in the files alone."""
