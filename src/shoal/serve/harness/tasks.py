"""Which tasks are meant, from which files, and what came out.

A folder stands for all tasks in it, a YAML file for its own; any other word is the name of a task that comes with `lm-eval`.
Paths in a YAML file (`dataset_kwargs.data_files`) are read from the folder where it lies. Nothing is fetched: data that a
task names on the hub must be here already. A task's YAML may run Python beside it (`!function`): run only tasks you trust.
"""

import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from shoal.core.errors import InputError
from shoal.core.extras import silenced
from shoal.serve.generation import LanguageModel
from shoal.serve.harness.model import HarnessModel

BOOTSTRAPS = 1000
"""Samples by which the error of what is no mean (BLEU) is estimated."""


@dataclass(frozen=True)
class TaskResult:
    """`figures` by name, and their standard errors, where there are some; of so many questions."""

    name: str
    questions: int
    figures: dict[str, float]
    errors: dict[str, float]


def run_tasks(
    language: LanguageModel, named: Sequence[str], batch: int, fewshot: int | None = None, limit: int | None = None
) -> list[TaskResult]:
    """Run tasks on a decoder; `InputError` for what is no task, or has no data here."""
    model = HarnessModel(language, batch)
    with _by_itself():
        tasks = _read(named)
        done: Any = simple_evaluate(
            model,
            tasks=tasks,
            num_fewshot=fewshot,
            limit=limit,
            batch_size=batch,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
        )
    return [_result(name, figures, done["n-samples"][name]["effective"]) for name, figures in done["results"].items()]


def _read(named: Sequence[str]) -> list[Any]:
    """The tasks, with their data."""
    paths = [Path(name) for name in named]
    folders = [path if path.is_dir() else path.parent for path in paths if path.is_dir() or path.suffix in (".yaml", ".yml")]
    missing = [path for path in paths if path.suffix in (".yaml", ".yml") and not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file")
    by_name = [name for name, path in zip(named, paths, strict=True) if not (path.is_dir() or path.is_file())]
    manager = TaskManager(include_path=[folder.resolve() for folder in folders], include_defaults=bool(by_name))
    tasks: dict[str, Any] = {}
    for name, path in zip(named, paths, strict=True):
        if name in by_name:
            if name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, 1)
                raise InputError(f"'{name}' is no folder, no YAML file and no task of lm-eval{_meant(near)}")
            tasks |= _load(manager, name, None)
            continue
        found = [
            entry for entry in manager.task_index.values()
            if entry.name in manager.all_subtasks and entry.yaml_path is not None and _lies_in(entry.yaml_path, path)
        ]  # fmt: skip
        if not found:
            raise InputError(f"{path}: holds no task of lm-eval: a YAML file with the keys 'task' and 'dataset_path'")
        for entry in found:
            tasks |= _load(manager, entry.name, entry.yaml_path)
    return list(tasks.values())


def _lies_in(file: Path, path: Path) -> bool:
    return file.resolve() == path.resolve() or file.resolve().is_relative_to(path.resolve())


def _meant(near: list[str]) -> str:
    return f"; did you mean '{near[0]}'?" if near else ""


def _load(manager: TaskManager, name: str, file: Path | None) -> dict[str, Any]:
    try:
        with chdir(file.parent if file is not None else "."):
            return dict(manager.load([name])["tasks"])
    except Exception as error:  # a task's YAML, code and data may fail in any way
        said = " ".join(str(error).split())
        advice = "" if file is not None else "; nothing is fetched here: its data must have been loaded once before"
        raise InputError(f"{file or name}: the task can't be read: {type(error).__name__}: {said}{advice}") from error


def _result(name: str, told: dict[str, Any], questions: int) -> TaskResult:
    figures: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in told.items():
        if not isinstance(value, int | float) or "," not in key:
            continue
        measure, _, kept = key.partition(",")
        plain = measure.removesuffix("_stderr")
        (errors if measure != plain else figures)[plain if kept == "none" else f"{plain},{kept}"] = float(value)
    return TaskResult(name, questions, figures, errors)


@contextmanager
def _by_itself() -> Iterator[None]:
    """Without a network, and without words beside the command's own."""
    libraries = ((datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE"))
    before = [getattr(module, name) for module, name in libraries]
    environment = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module, name in libraries:
        setattr(module, name, True)
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO())  # for people
    try:
        with silenced("lm_eval"), redirect_stdout(StringIO()), bars:
            yield
    finally:
        for (module, name), value in zip(libraries, before, strict=True):
            setattr(module, name, value)
        os.environ.pop("HF_HUB_OFFLINE")
        if environment is not None:
            os.environ["HF_HUB_OFFLINE"] = environment
