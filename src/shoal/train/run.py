"""A training run, from recipe to result, on one rank of many."""

import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from shoal.core.files import write_json
from shoal.core.machine import command_started, cores, cpu_name, keep_freed_memory
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import write_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.heartbeat import StalledError
from shoal.parallel.wire import PeerLostError, Wire
from shoal.parallel.world import join
from shoal.train.averages import evaluated_weight
from shoal.train.checkpoint import Saved
from shoal.train.loop import Parts, memory_bytes, train
from shoal.train.material import Gather, Material, pretraining
from shoal.train.setup import build, peak_of_all, watch_signals
from shoal.train.telemetry import read_metrics


@dataclass(frozen=True)
class Session:
    """How a run is started, which its recipe doesn't say."""

    run: RunDirectory
    resume: bool = False
    quiet: bool = False


def run_training(recipe: Recipe, session: Session, gather: Gather = pretraining) -> dict[str, Any] | None:
    """Train on what `gather` gathers, evaluate, and write model and result. Returns the result on the main rank, None on
    the others.
    """
    keep_freed_memory()
    with join(recipe.train.device, recipe.parallel.threads, recipe.parallel.timeout) as world:
        with watch_signals() as stop_requested:
            parts, material = build(
                recipe,
                session.run,
                world,
                resume=Wire(world).gather_objects(session.resume)[0],  # torchrun starts ranks again; the main one knows
                quiet=session.quiet,
                stop_requested=stop_requested,
                gather=gather,
            )
            try:
                if world.is_main:  # only now is it known to fit what is there
                    write_recipe(session.run.recipe, recipe)
                evaluated = train(parts)
            except (PeerLostError, StalledError):
                parts.checkpoints.abandon()
                raise
            finally:
                parts.telemetry.close()
        memory = parts.sync.wire.gather_objects(memory_bytes(world.device))
        # again, as a machine that was busy for a moment at the start would flatter MFU for the whole run
        peak = max(parts.peak_flops, peak_of_all(parts.sync.wire, recipe.train.precision))
        return finish(parts, material, session.run, peak, evaluated, memory) if world.is_main else None


def finish(
    parts: Parts, material: Material, run: RunDirectory, peak: float, evaluated: dict[str, float], memory: list[int]
) -> dict[str, Any]:
    """Write model and result of a trained run; `peak`: the ranks' matrix peak, and `memory`: what each has had at most."""
    result = {**_result(parts, material, run, peak, evaluated, memory), **material.facts}
    material.write_model(run.model, trained_weights(parts), result)
    write_json(run.result, result)
    return result


def _result(
    parts: Parts, material: Material, run: RunDirectory, peak: float, evaluated: dict[str, float], memory: list[int]
) -> dict[str, Any]:
    world = parts.sync.wire.world
    training, evaluations = read_metrics(run.metrics)
    warm = training[min(3, len(training) - 1) :]
    return {
        "run": str(run.root),
        "task": parts.recipe.task,
        "steps": parts.progress.step,
        "tokens": parts.progress.tokens,
        "epochs": _epochs(parts.batches.state_dict()),
        "parameters": material.parameters,
        "parameters_trained": parts.parameters,
        "loss": training[-1]["loss"],
        **evaluated,
        "best": parts.patience.state_dict() if parts.patience.best_step is not None else None,
        "stopped_early": parts.patience.over,
        "evaluations": [[line["step"], line["eval_loss"]] for line in evaluations],
        "seconds": parts.progress.seconds,
        # None when a finished run was resumed, and no step taken
        "train_seconds_from_start": _since_start(parts.telemetry.last_step_at),
        "first_step_seconds": _since_start(parts.telemetry.first_step_at),
        "tokens_per_second_median": statistics.median(line["tokens_per_second"] for line in warm),
        "mfu_median": statistics.median(line["mfu"] for line in warm) * parts.peak_flops / peak,
        "data_share_median": statistics.median(line["data_seconds"] / line["step_seconds"] for line in warm),
        "sync_share_median": statistics.median(line["sync_seconds"] / line["step_seconds"] for line in warm),
        "wire_bytes": sum(line["wire_bytes"] for line in training),
        "bits_per_parameter": statistics.mean(line.get("bits_per_parameter", 0.0) for line in training),
        "sync_seconds": sum(line["sync_seconds"] for line in training),
        "chosen": parts.auto.state,
        "stragglers": [text for line in training for text in line.get("stragglers", [])],
        "peak_memory_bytes": max(memory),
        "matrix_peak_flops": peak,
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "machine": {"cpu": cpu_name(), "cores": cores(), "torch": torch.__version__, "device": str(world.device)},
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "shoal": version("shoal"),
    }


def _epochs(state: dict[str, Any]) -> float:
    """How many times the training split has been read."""
    return state["position"] / state["samples"]


def _since_start(moment: float) -> float | None:
    return moment - command_started() if moment else None


def trained_weights(parts: Parts) -> dict[str, Tensor]:
    """What was trained, as it was evaluated last: put together from the checkpoint to which all ranks have written."""
    best, found = parts.patience.best_step, parts.checkpoints.newest()
    assert found is not None
    saved = Saved.open(found[0] if best is None else parts.checkpoints.at(best))
    return {name: evaluated_weight(saved, name) for name in saved.wholes["model"]}
