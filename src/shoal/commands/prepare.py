"""Read text, tokenize it and write a corpus that training reads; goes on where it was interrupted.

    shoal prepare gpt-demo
    shoal prepare --data.sources '[notes/, more.jsonl.gz]' --data.directory data/notes

A line of JSONL that is broken ends it, with its file and number; `--on-error skip` leaves such lines out and counts them.
A corpus that is there already is found again; another one in its place is never overwritten.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shoal.core.errors import InputError
from shoal.core.recipe_file import read_recipe
from shoal.data import prepare as data
from shoal.data.shards import Corpus
from shoal.data.tokenizer_choice import for_task
from shoal.data.tokenizer_page import tokenizer_lines


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal prepare`."""

    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """A recipe; without one, the defaults (Python's own source). `--data.… --tokenizer.…` change single keys."""
    json: bool = False
    """Print one JSON object on stdout, and nothing else there."""
    debug: bool = False
    """Show tracebacks."""
    workers: int = 0
    """Processes that clean, and threads that tokenize (0: one a core)."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Prepare the recipe's corpus; raises what `shoal.data.prepare.prepare` raises."""
    if arguments.workers < 0:
        raise InputError(f"--workers is {arguments.workers}; accepted: a whole number from 0")
    recipe = read_recipe(arguments.recipe, overrides)
    if recipe.data.mixture:
        raise InputError(
            "'data.mixture' names corpora that are prepared one by one: give each a recipe, or --data.directory"
        )
    console = Console(stderr=True)
    with _progress(console) as bar:
        report = _Report(bar, bar.add_task("opening sources", total=None, detail=""))
        prepared = data.prepare(
            recipe.data,
            for_task(recipe.tokenizer, recipe.task),
            Path(recipe.corpus_directory),
            report,
            workers=arguments.workers or None,
        )
    vocabulary = Corpus.open(prepared.directory).vocabulary
    if not arguments.json:
        for line in _summary(prepared, vocabulary):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return {**dataclasses.asdict(prepared), "directory": str(prepared.directory), "vocabulary": vocabulary}


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal)


@dataclass(frozen=True)
class _Report:
    bar: Progress
    task: TaskID

    def __call__(self, now: data.Progress) -> None:
        detail = f"{now.bytes / 1e6:,.0f} MB" + (f", {now.tokens:,} tokens" if now.tokens else "")
        self.bar.tasks[self.task].total = now.total_bytes  # `update` would take None for "as before"
        self.bar.update(self.task, description=now.stage, completed=now.bytes, detail=detail)


def _summary(prepared: data.Prepared, vocabulary: int) -> list[str]:
    size = f"{prepared.bytes / 1e6:,.1f} MB of text, {prepared.documents:,} documents, vocabulary {vocabulary:,}"
    tokens = f"{prepared.tokens:,} tokens to train on, {prepared.held_out_tokens:,} held out"
    cleaning = [_cleaned(prepared.cleaning)] if prepared.cleaning else []
    told = [*cleaning, *(tokenizer_lines(prepared.tokenizer) if prepared.tokenizer else []), *_left_out(prepared)]
    if prepared.already:
        return [f"{prepared.directory} already holds this corpus: {size}", tokens, *told]
    skipped = [f"{prepared.skipped} files left out: not UTF-8"] if prepared.skipped else []
    resumed = " (went on where it was interrupted)" if prepared.resumed else ""
    speed = f"{prepared.seconds:,.1f} s, tokenizing at {prepared.megabytes_per_second:,.1f} MB/s{resumed}"
    return [f"{prepared.directory}: {size}", tokens, speed, *told, *skipped]


def _left_out(prepared: data.Prepared) -> list[str]:
    if not prepared.left_out:
        return []
    more = prepared.left_out - len(prepared.faults)
    ending = [f"  … and {more:,} more"] if more else []
    return [f"left out, as it can't be used ({prepared.left_out:,}):", *(f"  {fault}" for fault in prepared.faults), *ending]


def _cleaned(cleaning: dict[str, Any]) -> str:
    """One line: how much was kept, and what each stage dropped."""
    dropped = [f"{stage['stage']} {stage['dropped']:,}" for stage in cleaning["stages"] if stage["dropped"]]
    kept = f"cleaning kept {cleaning['kept_documents']:,} of {cleaning['documents']:,} documents"
    return f"{kept}{', dropped by ' if dropped else ''}{', '.join(dropped)}; see corpus-report.html"
