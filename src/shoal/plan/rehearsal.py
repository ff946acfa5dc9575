"""A short run of the recipe itself, from which its time and memory are foretold.

Nothing is modelled that can be tried: the rehearsal is `shoal pretrain` in processes of its own, as many ranks as will be
there, with the recipe's model, data, micro-batch, division and optimizer, in a folder that is thrown away. It starts,
compiles, steps, evaluates, saves, writes the model and generates samples as the run will, only less often. What differs is
counted and multiplied: half of its steps take one micro-batch a rank and half take two, which tells what each further one
costs; evaluations of one batch and of three tell what a batch costs.

That takes about as long as the run needs to start, and `SECONDS` more; where the compiler had work to do, which the run will
find done, it is rehearsed twice.
"""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError, Interrupted, ShoalError
from shoal.core.machine import STARTED, cache_folder
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, recipe_tree, write_recipe
from shoal.core.run_directory import RunDirectory
from shoal.train.telemetry import read_metrics

SECONDS = 12.0
"""Training that is rehearsed, about."""

FEWEST, MOST = 8, 80
"""Steps of a rehearsal."""

LONG_EVALUATION = 3
"""Batches of the last evaluation; those before have one."""


@dataclass(frozen=True)
class Rehearsal:
    """What a short run took, in seconds and bytes.

    `start`: from the command to the first step; `first`: that step, beyond an ordinary one; `step`: one of `passes`
    micro-batches a rank (1 but in exact mode), of which `waiting` for other ranks; `more`: each further micro-batch;
    `between`: from a step's end to the next. `evaluation`: what each costs, and `batch`: what each of its batches; `end`:
    from the last evaluation until the command returns. `checkpoint` and `model`: bytes on disk.
    """

    start: float
    first: float
    passes: int
    step: float
    waiting: float
    more: float
    between: float
    evaluation: float
    batch: float
    end: float
    memory: int
    checkpoint: int
    model: int
    wire_bytes: int
    sequences: int
    """Of all its steps."""
    peak_flops: float
    threads: int
    device: str


@dataclass(frozen=True)
class Extent:
    """What a rehearsal needs to know of a run: data ranks on this machine, sequences of a forward pass, forward passes of a
    step at most, held-out rows of each corpus, and about how long a pass takes.
    """

    data_ranks: int
    at_once: int
    passes: int
    held_out: tuple[int, ...]
    seconds: float

    @property
    def sequences(self) -> int:
        """Of one pass of all ranks here."""
        return self.data_ranks * self.at_once


def rehearse(recipe: Recipe, workers: int, extent: Extent) -> Rehearsal:
    """Run the recipe for some steps on this machine. Raises what the run would: `InputError`, `ShoalError`."""
    of_each = 2 if recipe.parallel.exact else 3 if extent.passes > 1 else 2
    of_each *= extent.passes if recipe.parallel.exact else 1
    steps = max(FEWEST, min(MOST, 2 * round(SECONDS / extent.seconds / of_each)))
    shortened = shorten(recipe, steps, extent)
    before = _compiled()
    found = _run(shortened, workers, extent)
    return found if _compiled() == before else _run(shortened, workers, extent)


def shorten(recipe: Recipe, steps: int, extent: Extent) -> Recipe:
    """The recipe with few steps, each of one pass for the first half, and of two, if it has several, for the second."""
    sequences, several = extent.sequences, extent.passes > 1
    tree = recipe_tree(recipe)
    tree["name"] = "rehearsal"
    # the run's text, also where its place follows from the run's name; later stages may begin within these few steps
    tree["data"] |= {"directory": recipe.corpus_directory, "weights": recipe.data.weights[:1]}
    tree["train"] |= {"steps": steps, "tokens": 0, "minutes": 0.0}
    tree["schedule"]["batch_start"] = 0
    if not recipe.parallel.exact:  # whose steps are always cut alike
        tree["train"] |= {"micro_batch": 0, "global_batch": 2 * sequences if several else sequences}
        tree["schedule"] |= {"batch_start": sequences if several else 0, "batch_until": 0.5}
    once = sequences * len(extent.held_out)
    tree["evaluation"] |= {
        "every": steps // 4, "sequences": once, "final_sequences": LONG_EVALUATION * once, "patience": 0
    }  # fmt: skip
    tree["checkpoint"]["every"] = 0
    tree["parallel"]["link"] = {"megabits": 0.0, "latency": 0.0}  # what links cost is added by the cost model
    if recipe.parallel.sync == "local":
        tree["parallel"]["codec"]["kind"] = "none"
        tree["parallel"]["sync"] = "every"
    return build_recipe(tree)


def _run(recipe: Recipe, workers: int, extent: Extent) -> Rehearsal:
    with tempfile.TemporaryDirectory(prefix="shoal-plan-") as name:
        folder = Path(name)
        write_recipe(folder / "recipe.yaml", recipe)
        words = ["pretrain", str(folder / "recipe.yaml"), "--runs", name, "--workers", str(workers), "--json", "--quiet"]
        began = time.time()
        result = run_shoal(words)
        wall = time.time() - began
        return _read(recipe, extent, RunDirectory(folder / recipe.name), result, wall)


def run_shoal(words: list[str]) -> dict[str, Any]:
    """What `shoal WORDS --json` prints; raises its error as it told it. An interruption ends it too."""
    environment = {name: value for name, value in os.environ.items() if name != STARTED}
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal", *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, told = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if process.returncode:
        message = next((line for line in reversed(told.splitlines()) if line.startswith("shoal")), told[-300:])
        kind = {InputError.exit_code: InputError, Interrupted.exit_code: Interrupted}.get(process.returncode, ShoalError)
        raise kind(message.partition("error: ")[2] or message)
    return json.loads(out)


def _read(recipe: Recipe, extent: Extent, run: RunDirectory, result: Mapping[str, Any], wall: float) -> Rehearsal:
    training, evaluations = read_metrics(run.metrics)
    half = len(training) // 2
    several = bool(recipe.schedule.batch_start)
    single, double = (training[1:half], training[half:]) if several else (training[1:], training[1:])
    step, twice = (statistics.median(line["step_seconds"] for line in lines) for lines in (single, double))
    steps = [line["step_seconds"] for line in training]
    took = result["train_seconds_from_start"] - result["first_step_seconds"]  # from the first step's end to the last's
    *short, last = [line["eval_seconds"] for line in evaluations]
    each = min(short[1:] or short)  # the first finds nothing warm
    settings = recipe.evaluation
    few, many = (
        evaluation_batches(extent.held_out, limit, extent.sequences)
        for limit in (settings.sequences, settings.final_sequences)
    )
    batch = max(0.0, last - each) / (many - few) if many > few else 0.0
    whole = extent.passes if recipe.parallel.exact else 1
    saved = run.checkpoints / run.checkpoints.joinpath("latest").read_text().strip()
    return Rehearsal(
        start=max(0.0, result["first_step_seconds"] - steps[0]),
        first=max(0.0, steps[0] - step),
        passes=whole,
        step=step,
        waiting=statistics.median(line["sync_seconds"] for line in single),
        more=max(0.0, twice - step) if several else step / whole,
        between=max(0.0, took - sum(steps[1:]) - sum(short)) / (len(steps) - 1),
        evaluation=max(0.0, each - few * batch),
        batch=batch,
        end=max(0.0, wall - result["train_seconds_from_start"] - last),
        memory=result["peak_memory_bytes"],
        checkpoint=_size(saved),
        model=_size(run.model),
        wire_bytes=round(statistics.median(line["wire_bytes"] for line in single)),
        sequences=recipe.train.global_batch * len(steps),
        peak_flops=result["matrix_peak_flops"],
        threads=result["threads"],
        device=result["machine"]["device"],
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _compiled() -> int:
    """How much the compilers have left for later."""
    folders = {cache_folder(), Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", cache_folder()))}
    return sum(1 for folder in folders for path in folder.rglob("*") if path.suffix in (".so", ".cpp"))


def passes(batch: int, data_ranks: int, at_once: int) -> int:
    """Micro-batches of a rank in a step of so many sequences."""
    return math.ceil(math.ceil(batch / data_ranks) / at_once)


def evaluation_batches(held_out: Sequence[int], limit: int, together: int) -> int:
    """Batches, of `together` rows of one corpus over all ranks, of an evaluation that reads `limit` rows (0: all)."""
    share = math.ceil(limit / len(held_out))
    return sum(math.ceil(min(share or rows, rows) / together) for rows in held_out)
