"""How a run is begun from the command line: its folder claimed, and ranks started where there are to be several."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError
from shoal.core.files import read_json, remove_folder, write_json
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import write_recipe
from shoal.core.run_directory import RUNS, RunDirectory
from shoal.parallel.launch import ERROR_FOLDER, launch
from shoal.parallel.world import is_rank
from shoal.train.elastic import Workers, is_of_this_job, launch_elastic, mark_job, newest_checkpoint

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Options of every verb that starts a run."""

    workers: str = "1"
    """Ranks to start on this machine; LEAST:MOST: a run that loses ranks goes on with fewer, from its last checkpoint."""
    resume: bool = False
    """Go on from the run's newest whole checkpoint."""
    overwrite: bool = False
    """Start anew in a folder that holds a run."""
    runs: Path = RUNS
    """Folder of all runs."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Start:
    """What was asked for; `workers` ranks on this machine."""

    verb: str
    workers: Workers
    resume: bool
    overwrite: bool
    quiet: bool
    debug: bool
    runs: Path

    @classmethod
    def of(cls, verb: str, arguments: StartOptions) -> "Start":
        """From a verb's arguments; `InputError` for what contradicts itself."""
        if arguments.resume and arguments.overwrite:
            raise InputError("--resume goes on and --overwrite starts anew: give one of them")
        workers = Workers.parse(arguments.workers)
        return cls(
            verb, workers, arguments.resume, arguments.overwrite, arguments.quiet, arguments.debug, arguments.runs
        )  # fmt: skip


def run_on_ranks(
    start: Start,
    recipe: Recipe,
    check: Callable[[], object],
    train: Callable[[RunDirectory, bool], Result | None],
    serve: Callable[[RunDirectory, bool], Result],
) -> Result | None:
    """The run's result, None on ranks that don't speak; `train` gets the run's folder, and whether to go on.

    `check` raises what can't work before anything starts, or is removed; `serve` trains where the recipe has servers.
    """
    folder = RunDirectory(start.runs / recipe.name)
    main = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    launched = ERROR_FOLDER in os.environ
    if main and not launched:
        start = _as_begun(start, folder)
        check()
        folder.claim(start.resume, start.overwrite)
        if start.overwrite:
            _clear(folder)
        if not start.resume:
            remove_folder(folder.tokenizer)
        mark_job(folder)
    if recipe.parallel.sync == "server":
        return serve(folder, start.resume)
    if (start.workers.most > 1 or start.workers.elastic) and not is_rank():
        return _launch(start, recipe, folder)
    result = train(folder, start.resume)
    return None if launched else result


def _as_begun(start: Start, folder: RunDirectory) -> Start:
    """Ranks that torchrun has started again go on, or begin anew where nothing was saved, whatever the first were told."""
    if not is_of_this_job(folder):
        return start
    saved = newest_checkpoint(folder) is not None
    return replace(start, resume=saved, overwrite=not saved)


def _launch(start: Start, recipe: Recipe, folder: RunDirectory) -> Result:
    """Train on ranks of this machine."""
    handed_over = folder.root / ".recipe.yaml"
    write_recipe(handed_over, recipe)
    words = [start.verb, str(handed_over), "--runs", str(start.runs)]
    words += [flag for flag, given in (("--quiet", start.quiet), ("--debug", start.debug)) if given]
    try:
        if not start.workers.elastic:
            launch(start.workers.most, [*words, "--resume"] if start.resume else words)
            return read_json(folder.result)
        reformed = launch_elastic(start.workers.sizes(recipe), words, folder, start.resume)
    finally:
        handed_over.unlink(missing_ok=True)
    result = read_json(folder.result) | {"reformed": reformed}
    write_json(folder.result, result)
    return result


def _clear(folder: RunDirectory) -> None:
    for path in (folder.metrics, folder.ledger, folder.result, folder.report, folder.predictions, folder.confusion):
        path.unlink(missing_ok=True)
    for path in (folder.checkpoints, folder.tensorboard, folder.model, folder.adapter):
        remove_folder(path)
