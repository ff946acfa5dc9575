"""The training loop: one step, top to bottom.

It receives built objects and never asks which they are; `train.setup` builds them. A world of one rank takes the same path.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from shoal.core.errors import Interrupted, ShoalError
from shoal.core.machine import peak_memory_bytes
from shoal.core.recipe import Recipe
from shoal.core.seeds import derive_seed
from shoal.data.batches import TrainingBatches
from shoal.models.transformer import Transformer
from shoal.parallel.sync import Sync
from shoal.tasks import Task
from shoal.train.checkpoint import Checkpoints, Snapshot
from shoal.train.evaluation import Evaluator
from shoal.train.optimizers import Optimizer
from shoal.train.schedule import Budget, learning_rate_share
from shoal.train.stragglers import Stragglers
from shoal.train.telemetry import Silence, Telemetry


@dataclass
class Progress:
    """How far the run has come; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Parts:
    """Everything that the loop works with."""

    recipe: Recipe
    model: Transformer
    task: Task
    batches: TrainingBatches
    optimizer: Optimizer
    sync: Sync
    budget: Budget
    evaluate: Evaluator
    checkpoints: Checkpoints
    telemetry: Telemetry | Silence
    precision: AbstractContextManager[None]
    peak_flops: float
    stop_requested: Callable[[], bool]
    progress: Progress = field(default_factory=Progress)


def train(parts: Parts) -> dict[str, float]:
    """Train until the budget ends; returns the last evaluation.

    Raises `Interrupted` after saving when a stop was requested, `ShoalError` when the loss is not finite.
    """
    recipe, model, task, sync, progress = parts.recipe, parts.model, parts.task, parts.sync, parts.progress
    world, wire = sync.wire.world, sync.wire
    flops_per_token = model.flops_per_token(parts.batches.context)
    began = time.perf_counter() - progress.seconds
    evaluated: dict[str, float] = {}
    stragglers = Stragglers(world.rank, world.size)
    model.train()

    while (done := parts.budget.progress(progress.step, progress.tokens, progress.seconds)) < 1:
        clock = time.perf_counter()
        wire.at_step(progress.step + 1)
        waited, sent = wire.seconds_waited, wire.bytes_sent
        micro_batches = parts.batches.next_step()
        data_seconds = time.perf_counter() - clock
        torch.manual_seed(derive_seed(recipe.seed, "dropout", world.rank, progress.step))

        totals = torch.zeros(4, dtype=torch.float64, device=world.device)
        for index, windows in enumerate(micro_batches):
            sync.begin_backward(last=index == len(micro_batches) - 1)
            with parts.precision:
                loss_sum, count = task.loss(model, task.batch(windows, world.device))
            loss_sum.backward()
            totals[:2] += torch.stack((loss_sum.detach().double(), count.double()))

        # ranks decide together: all leave at the same step, by rank 0's clock
        totals[2] = float(parts.stop_requested())
        totals[3] = time.perf_counter() - began if world.is_main else 0.0
        sync.before_step()
        figures = torch.tensor(stragglers.rows(), dtype=torch.float64, device=world.device)
        total_loss, targets, stop, seconds, *rows = wire.sum(torch.cat((totals, figures))).tolist()
        loss, norm = total_loss / targets, sync.grad_norm().item() / targets
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ShoalError(
                f"step {progress.step + 1}: loss {loss}, gradient norm {norm}: training has diverged; "
                "lower optimizer.learning_rate and start anew"
            )
        # one pass: from the sum over targets to their mean, and clipped
        sync.scale_grads(min(1.0, recipe.train.clip / (norm + 1e-12) if recipe.train.clip else 1.0) / targets)
        share = learning_rate_share(recipe.schedule, done, progress.step)
        parts.optimizer.step(share)
        sync.after_step()

        progress.step += 1
        progress.tokens += int(targets)
        progress.seconds = seconds
        done = parts.budget.progress(progress.step, progress.tokens, progress.seconds)
        step_seconds = time.perf_counter() - clock
        speed = targets / step_seconds
        record = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": loss,
            "lr": share * recipe.optimizer.learning_rate,
            "grad_norm": norm,
            "tokens_per_second": speed,
            "mfu": speed * flops_per_token / parts.peak_flops,
            "step_seconds": step_seconds,
            "data_seconds": data_seconds,
            "sync_seconds": wire.seconds_waited - waited,
            "wire_bytes": wire.bytes_sent - sent,
            "memory_bytes": memory_bytes(world.device),
        }
        if found := stragglers.find(rows, progress.step - 1):
            record["stragglers"] = found
        stragglers.keep(step_seconds, data_seconds, wire.seconds_waited - waited)
        parts.telemetry.step(record, done)
        for straggler in found:
            parts.telemetry.note(straggler)

        # first what can't be had again
        if stop or done >= 1 or _due(progress.step, recipe.checkpoint.every):
            if world.is_main:
                parts.checkpoints.save(snapshot(parts))
            if stop:
                parts.checkpoints.wait()
        if done >= 1 or _due(progress.step, recipe.evaluation.every):
            evaluated = parts.evaluate(model, final=done >= 1)
            parts.telemetry.evaluation({"step": progress.step, "tokens": progress.tokens, **evaluated})
        if stop and done < 1:
            again = f"shoal pretrain {parts.checkpoints.folder.parent / 'recipe.yaml'} --resume"
            ranks = f" --workers {world.size}" if world.size > 1 else ""
            raise Interrupted(f"interrupted; saved at step {progress.step}. Go on with: {again}{ranks}")
    parts.checkpoints.wait()
    return evaluated or parts.evaluate(model)


def snapshot(parts: Parts) -> Snapshot:
    """Everything that must be kept to go on bitwise."""
    tensors = {
        "model": dict(parts.model.state_dict()),
        "optimizer": parts.optimizer.state_dict(),
        "sync": parts.sync.state_dict(),
    }
    progress = parts.progress
    state = {
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "batches": parts.batches.state_dict(),
        "world_size": parts.sync.wire.world.size,
    }
    return Snapshot(progress.step, tensors, state)


def restore(parts: Parts, saved: Snapshot) -> None:
    """Put a snapshot back; random streams need nothing, they are derived from the step."""
    parts.model.load_state_dict(saved.tensors["model"])
    parts.optimizer.load_state_dict(saved.tensors["optimizer"])
    parts.sync.load_state_dict(saved.tensors.get("sync", {}))
    parts.batches.load_state_dict(saved.state["batches"])
    parts.progress.step = saved.step
    parts.progress.tokens = saved.state["tokens"]
    parts.progress.seconds = saved.state["seconds"]


def memory_bytes(device: torch.device) -> int:
    """The most memory this rank has had: on its GPU, or resident on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
