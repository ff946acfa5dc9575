"""The training loop: one step, top to bottom.

It receives built objects and never asks which they are; `train.setup` builds them. A world of one rank takes the same path.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from shoal.core.errors import Interrupted, ShoalError
from shoal.core.machine import peak_memory_bytes
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.core.seeds import derive_seed, generator
from shoal.data.ledger import Ledger, write_ledger
from shoal.data.sequences import Sequences
from shoal.models.transformer import Transformer
from shoal.parallel.shards import Shards
from shoal.parallel.sync import Sync
from shoal.parallel.world import World
from shoal.tasks import Task
from shoal.tasks.task import Batch, on_device
from shoal.train.adversary import Adversary
from shoal.train.auto import Auto
from shoal.train.checkpoint import Checkpoints, Part, Saved, SavedElsewhere, Snapshot, of_copy
from shoal.train.optimizers import Optimizer
from shoal.train.patience import Patience
from shoal.train.schedule import Budget, SharedBudget, learning_rate_share
from shoal.train.stragglers import FIGURES, Stragglers
from shoal.train.telemetry import Silence, Telemetry


@dataclass
class Progress:
    """How far the run has come; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0


class Batches(Protocol):
    """This rank's sequences, step by step, as many micro-batches on every rank."""

    def next_step(self) -> list[tuple[int, Sequences]]:
        """The micro-batches of the next step, each with the position of its first sequence."""
        ...

    def read_ahead(self) -> None:
        """Read the next step's micro-batches, if that can be known, while a GPU computes this one's; nothing is given."""
        ...

    def close(self, step: int, gather: Callable[[Any], list[Any]]) -> Ledger | None:
        """What all ranks have read by the end of `step`; `gather` collects a value of each data rank."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where to go on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True)
class Parts:
    """Everything that the loop works with."""

    recipe: Recipe
    model: Transformer
    task: Task
    batches: Batches
    optimizer: Optimizer
    sync: Sync
    budget: Budget | SharedBudget
    evaluate: Callable[..., dict[str, float]]
    checkpoints: Checkpoints | SavedElsewhere
    telemetry: Telemetry | Silence
    precision: AbstractContextManager[None]
    parameters: int
    """That are trained."""
    flops_per_token: float
    peak_flops: float
    stop_requested: Callable[[], bool]
    auto: Auto
    progress: Progress = field(default_factory=Progress)
    patience: Patience = field(default_factory=Patience)
    adversary: Adversary | None = None
    alike: bool = False
    """Whether the last evaluation takes no longer, and tells nothing else, by which a model is chosen than those before."""


def train(parts: Parts) -> dict[str, float]:
    """Train until the budget or the patience ends; returns the last evaluation, which is of the best weights if asked for.

    Raises `Interrupted` after saving when a stop was requested, `ShoalError` when the loss is not finite.
    """
    recipe, model, sync, progress = parts.recipe, parts.model, parts.sync, parts.progress
    world, wire, patience = sync.wire.world, sync.wire, parts.patience
    began = time.perf_counter() - progress.seconds
    evaluated: dict[str, float] = {}
    stragglers = Stragglers(world.rank, world.size)
    model.train()

    while (done := parts.budget.progress(progress.step, progress.tokens, progress.seconds)) < 1 and not patience.over:
        clock = time.perf_counter()
        wire.at_step(progress.step + 1)
        waited, sent = wire.seconds_waited, wire.bytes_sent
        micro_batches = parts.batches.next_step()
        data_seconds = time.perf_counter() - clock

        # for a whole step: ranks that meet within a block, and micro-batches, leave out the same
        model.drop_layers(generator(recipe.seed, "layer drop", progress.step))
        totals = empty_totals(world, len(micro_batches))
        told = np.zeros((len(micro_batches), totals.shape[1] - 2))  # what no GPU computes
        for index, (position, sequences) in enumerate(micro_batches):
            # what is dropped belongs to the sequences, whichever rank computes them
            torch.manual_seed(derive_seed(recipe.seed, "dropout", position))
            loss_sum, count, read = _learn(parts, sequences, last=index == len(micro_batches) - 1)
            totals[index, :2] = torch.stack((loss_sum.detach().double(), count.double()))
            told[index, 0] = read / sync.mesh.tensor.size

        # ranks decide together: all leave at the same step, by rank 0's clock
        told[0, 1:3] = parts.stop_requested(), time.perf_counter() - began if world.is_main else 0.0
        told[0, 3:] = stragglers.rows()
        totals[:, :2] /= sync.mesh.tensor.size  # tensor ranks have read the same
        totals[:, 2:] = on_device(told, world.device)  # at once: a number that is put there by itself is waited for
        totals[0, 5 + stragglers.place_of_fault] = totals[:, 0].isfinite().all().logical_not()
        sync.before_step()
        # all that is to be computed is given to a GPU before it is waited for
        summed, gradient_norm = sync.sum_totals(totals), sync.grad_norm()
        read_from = time.perf_counter()
        parts.batches.read_ahead()  # counts as this step's reading, as the last step's did that read this one's
        data_seconds += time.perf_counter() - read_from
        total_loss, targets, tokens, stop, seconds, *figures = summed.tolist()
        targets = targets or 1.0  # a step may read nothing but what is too short to learn from: its sums are 0
        loss, norm = total_loss / targets, gradient_norm.item() / targets
        share = learning_rate_share(recipe.schedule, done, progress.step)
        if math.isfinite(loss) and math.isfinite(norm):
            # one pass: from the sum over targets to their mean, and clipped
            sync.scale_grads(min(1.0, recipe.train.clip / (norm + 1e-12) if recipe.train.clip else 1.0) / targets)
            parts.optimizer.step(share)
        else:
            _skip(parts, loss, norm, stragglers.not_finite(figures))
        sync.after_step()

        progress.step += 1
        progress.tokens += round(tokens)  # six or seven tensor ranks have sixths or sevenths
        progress.seconds = seconds or progress.seconds
        done = parts.budget.progress(progress.step, progress.tokens, progress.seconds)
        if done >= 1:
            sync.settle()
        step_seconds = time.perf_counter() - clock
        speed = tokens / step_seconds
        record = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": loss,
            "lr": share * recipe.optimizer.learning_rate,
            "grad_norm": norm,
            "tokens_per_second": speed,
            "mfu": speed * parts.flops_per_token / parts.peak_flops,
            "step_seconds": step_seconds,
            "data_seconds": data_seconds,
            "sync_seconds": wire.seconds_waited - waited,
            "wire_bytes": wire.bytes_sent - sent,
            "bits_per_parameter": 8 * (wire.bytes_sent - sent) / parts.parameters,
            "memory_bytes": memory_bytes(world.device),
        }
        if progress.skipped:
            record["skipped"] = progress.skipped
        if by_rank := stragglers.by_rank(figures):
            record["ranks"] = by_rank
        if found := stragglers.find(figures, progress.step - 1):
            record["stragglers"] = found
        parts.auto.keep(step_seconds, wire.seconds_waited - waited)
        stragglers.keep(step_seconds, data_seconds, wire.seconds_waited - waited, wire.bytes_sent - sent)
        parts.telemetry.step(record, done)
        for straggler in found:
            parts.telemetry.note(straggler)

        # before the checkpoint, which keeps what follows from it; with patience, the last weights may be the best
        improved, final = False, done >= 1 and parts.alike
        if _due(progress.step, recipe.evaluation.every) if done < 1 else patience.allowed:
            evaluated = _evaluate(parts, final)
            parts.telemetry.evaluation(_record(progress, evaluated))
            improved = patience.judge(progress.step, evaluated, lambda verdict: sync.from_main("verdict", verdict))
            if patience.over and done < 1:
                done = 1.0
                sync.settle()

        # before the last evaluation, which may be long: this can't be had again
        if stop or done >= 1 or improved or _due(progress.step, recipe.checkpoint.every):
            ledger = parts.batches.close(progress.step, lambda share: wire.gather_objects(share)[:: sync.mesh.tensor.size])
            if world.is_main and ledger is not None:
                write_ledger(RunDirectory(parts.checkpoints.folder.parent).ledger, ledger)
            parts.checkpoints.save(snapshot(parts))
            if stop:
                parts.checkpoints.wait()
            elif done < 1:
                parts.auto.look_again(parts.telemetry.note)
        if done >= 1 and not (final and improved):
            evaluated = _evaluate_best(parts)
            parts.telemetry.evaluation(_record(progress, evaluated))
        if stop and done < 1:
            again = RunDirectory(parts.checkpoints.folder.parent).again(recipe.verb, world.size)
            raise Interrupted(f"interrupted; saved at step {progress.step}. Go on with: {again}")
    parts.checkpoints.wait()
    return evaluated or _evaluate_best(parts)


def _learn(parts: Parts, sequences: Sequences, last: bool) -> tuple[Tensor, Tensor, int]:
    """Add a micro-batch's gradients to those that there are; its summed loss, targets, and how much text was read."""
    with parts.precision:
        batch = parts.task.batch(sequences, parts.sync.wire.world.device)
    if parts.adversary is None:
        return *_pass(parts, batch, last), batch.read
    with parts.adversary.watching():
        loss_sum, count = _pass(parts, batch, last=False, share=0.5)
    with parts.adversary.pushing(batch):
        _pass(parts, batch, last, share=0.5)
    return loss_sum, count, batch.read


def _pass(parts: Parts, batch: Batch, last: bool, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Forward and backward; gradients are `share` of the summed loss's."""
    parts.sync.begin_backward(last)
    with parts.precision:
        loss_sum, count = parts.task.loss(parts.model, batch)
    (loss_sum if share == 1 else share * loss_sum).backward()
    return loss_sum, count


def _evaluate(parts: Parts, final: bool) -> dict[str, float]:
    """Evaluate the weights that all ranks share."""
    with parts.sync.common_weights():
        return parts.evaluate(parts.model, final=final)


def _record(progress: Progress, evaluated: dict[str, float]) -> dict[str, float]:
    return {"step": progress.step, "tokens": progress.tokens, **evaluated}


def _evaluate_best(parts: Parts) -> dict[str, float]:
    """The last evaluation: of the weights as they are, or, where patience was asked for, of the best there were."""
    best = parts.patience.best_step
    if best is not None and best != parts.progress.step:
        parts.checkpoints.wait()
        parts.sync.from_main("written", None)  # until all ranks have written
        if (saved := parts.checkpoints.of_step(best)) is not None:
            _restore_weights(parts, saved)
    return _evaluate(parts, final=True)


def _skip(parts: Parts, loss: float, norm: float, culprits: list[int]) -> None:
    """A step whose sums are not finite changes nothing; `ShoalError` when there have been too many."""
    progress, most = parts.progress, parts.recipe.train.max_skipped
    progress.skipped += 1
    who = f" on rank{'s' * (len(culprits) > 1)} {', '.join(map(str, culprits))}" if culprits else ""
    what = f"step {progress.step + 1}: loss {loss}, gradient norm {norm}: not finite{who}"
    if progress.skipped > most:
        raise ShoalError(
            f"{what}; skipped {progress.skipped - 1} before (train.max_skipped): training has diverged; "
            "lower optimizer.learning_rate and start anew"
        )
    parts.telemetry.note(f"{what}; skipped ({progress.skipped} of at most {most})")


def empty_totals(world: World, micro_batches: int) -> Tensor:
    """What is summed over a step: loss, targets, tokens read, "please stop", rank 0's clock, and a row of figures a rank.

    [micro-batches, 5 + FIGURES × ranks]
    """
    return torch.zeros(micro_batches, 5 + FIGURES * world.size, dtype=torch.float64, device=world.device)


def snapshot(parts: Parts) -> Snapshot:
    """This rank's part of everything that must be kept to go on bitwise.

    Copies of the model that differ (`sync.apart`) are saved apart: `model`, `model-1`, …
    """
    sync, progress = parts.sync, parts.progress
    apart, world = sync.apart, sync.wire.world
    first_of_copy = world.rank % (world.size // apart.size) == 0
    saved = {
        of_copy("model", apart.rank): {
            name: Part(shard.value, shard.shape, shard.boxes)
            for name, shard in sync.shards.items()
            if shard.first and shard.value.numel()
        },
        # what is no parameter's is the same on all ranks that have it, and which do depends on the parameters they have
        of_copy("optimizer", apart.rank): _divided(sync.shards, parts.optimizer.state_dict(), True),
        "sync": _divided(sync.shards, sync.state_dict(), world.is_main) if apart.rank == 0 else {},
    }
    own = sync.own_state()
    if apart.size > 1:
        saved[of_copy("own", apart.rank)] = _divided(sync.shards, own, first_of_copy)
    else:
        saved["own"] = {f"{world.rank}/{key}": Part(tensor, tensor.shape) for key, tensor in own.items()}
    state = {
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "skipped": progress.skipped,
        "batches": parts.batches.state_dict(),
        "world_size": world.size,
        "copies": apart.size,
        "chosen": parts.auto.state,
        "patience": parts.patience.state_dict(),
    }
    return Snapshot(progress.step, saved, state, parts.patience.best_step)


def _divided(shards: Shards, tensors: dict[str, Tensor], whole: bool) -> dict[str, Part]:
    """What this rank saves of tensors by `parameter name/kind`: of a parameter's own, its boxes of those divided as weights
    and all of others, which only one rank of a copy may have; what is no parameter's if `whole`.
    """
    parts = {}
    for key, tensor in tensors.items():
        shard = shards.get(key.rpartition("/")[0])
        if shard is None:
            if whole:
                parts[key] = Part(tensor, tensor.shape)
        elif shard.first and tensor.numel():
            divided = tensor.shape == shard.value.shape
            parts[key] = Part(tensor, shard.shape, shard.boxes) if divided else Part(tensor, tensor.shape)
    return parts


def restore(parts: Parts, saved: Saved) -> None:
    """Put a checkpoint back, however it was divided; random streams need nothing, they are derived from the step."""
    _restore_weights(parts, saved)
    parts.batches.load_state_dict(saved.state["batches"])
    parts.patience.load_state_dict(saved.state.get("patience", {}))
    parts.progress.step = saved.step
    parts.progress.tokens = saved.state["tokens"]
    parts.progress.seconds = saved.state["seconds"]
    parts.progress.skipped = saved.state.get("skipped", 0)


@torch.no_grad()
def _restore_weights(parts: Parts, saved: Saved) -> None:
    """Weights, and what optimizer and sync know of them.

    Where as many copies differed as do now, each takes up its own; else all begin at the mean of their weights.
    """
    sync, copies = parts.sync, saved.state.get("copies", 1)
    shards = sync.shards
    taken = [sync.apart.rank] if copies == sync.apart.size else range(copies)
    with sync.changing_weights():
        for name, shard in shards.items():
            if (shape := saved.wholes["model"][name].shape) != shard.shape:
                raise RuntimeError(f"{name} is {tuple(shape)} there and {tuple(shard.shape)} here")
            read = [saved.read(of_copy("model", copy), name, shard.boxes) for copy in taken]
            shard.value.copy_(read[0] if len(read) == 1 else torch.stack(read).mean(0))
    mine = of_copy("optimizer", sync.apart.rank % copies)
    parts.optimizer.load_state_dict(_read_divided(saved, mine, shards))
    sync.load_state_dict(_read_divided(saved, "sync", shards))
    sync.load_own_state(_own_states(saved, sync, copies))


def _own_states(saved: Saved, sync: Sync, copies: int) -> list[Mapping[str, Tensor]]:
    """What ranks, or copies that differ, knew alone: each goes to one that is there now, whose number may be another."""
    if sync.apart.size > 1:
        mine = range(sync.apart.rank, copies, sync.apart.size)
        return [_read_divided(saved, of_copy("own", copy), sync.shards) for copy in mine]
    states: dict[int, dict[str, Tensor]] = {}
    for key in saved.wholes.get("own", {}) if copies == 1 else ():
        rank, _, rest = key.partition("/")
        if int(rank) % sync.wire.world.size == sync.wire.world.rank:
            states.setdefault(int(rank), {})[rest] = saved.read("own", key)
    return [states[rank] for rank in sorted(states)]


def _read_divided(saved: Saved, group: str, shards: Shards) -> dict[str, Tensor]:
    tensors = {}
    for key, whole in saved.wholes.get(group, {}).items():
        name = key.rpartition("/")[0]
        if name in shards and whole.shape == shards[name].shape:
            tensors[key] = saved.read(group, key, shards[name].boxes)
        elif name in shards or name not in saved.wholes["model"]:  # what only another rank holds needs nothing here
            tensors[key] = saved.read(group, key)
    return tensors


def memory_bytes(device: torch.device) -> int:
    """The most memory this rank has had: on its GPU, or resident on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
