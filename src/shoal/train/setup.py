"""From a recipe to the objects that the loop works with. All choosing happens here, once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from shoal.core.errors import CheckpointError, InputError
from shoal.core.machine import code_fingerprint
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.batch_sizes import sequences_at_once
from shoal.data.batches import TrainingBatches
from shoal.models.transformer import Transformer
from shoal.parallel.launch import ERROR_FOLDER, leave_early, stop_is_asked_for
from shoal.parallel.mesh import Mesh, make_mesh
from shoal.parallel.shards import Shards, learnt
from shoal.parallel.sync import Sync
from shoal.parallel.throttle import Throttle
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import Task
from shoal.train.adversary import Adversary, passes_of
from shoal.train.auto import Auto, decided
from shoal.train.averages import AverageEvaluator
from shoal.train.checkpoint import Checkpoints, Saved, SavedElsewhere
from shoal.train.exact import resolve
from shoal.train.loop import Parts, restore
from shoal.train.material import Evaluate, Gather, Material, pretraining
from shoal.train.model_setup import (
    compile_blocks,
    divide_products,
    recompute_blocks,
    soften_loss,
    use_native_kernels,
)
from shoal.train.optimizers import build_optimizer
from shoal.train.patience import Patience, check_regular
from shoal.train.strategies import describe, make_sync, mesh_sizes
from shoal.train.telemetry import Silence, Telemetry
from shoal.train.tuning import rate_multiples

WITH_GRADIENT, STATE = 8, 8
"""Bytes of a parameter that is learnt: itself and its gradient; AdamW's two moments, where this rank steps on it."""

FEW = 64
"""Held-out sequences, or examples, that tell which figures evaluations tell."""

LEAVING_SECONDS = 8.0
"""How long a rank may take to notice by itself that another has failed."""


def build(
    recipe: Recipe,
    run: RunDirectory,
    world: World,
    *,
    resume: bool = False,
    quiet: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    gather: Gather = pretraining,
) -> tuple[Parts, Material]:
    """Everything that `train.loop` needs, on this rank, and what it was made from, which `gather` gathers.

    Raises `InputError` for what can't work.
    """
    recipe = resolve(recipe, world.size)
    wire = make_wire(recipe, world)
    material = gather(recipe, world)
    recipe, model, task, plan = material.recipe, material.model, material.task, material.plan
    check_regular(recipe)
    _check_equal(wire, recipe, material.identity)
    train = recipe.train
    mesh = make_mesh(world, mesh_sizes(recipe, world.size))
    adversary = Adversary.of(recipe, model)
    passes = passes_of(recipe)
    flops = passes * model.flops_per_token(material.tokens, task.projected)
    share, together = -(-train.global_batch // mesh.data.size), sequences_at_once(recipe, mesh.data.size)
    shards, compiled = lay_out_model(model, recipe, wire, mesh, together * material.tokens)
    precision = make_precision(train.precision, world.device)
    auto = Auto(recipe, wire, decided(wire, run.checkpoints) if resume else None)
    recipe = auto.decide(model, task, precision, together, passes * -(-share // together), mesh, shards)
    sync = make_sync(recipe, wire, mesh, model)
    sync.attach(model, shards)
    batches = TrainingBatches(
        plan.rows, plan.order, train.global_batch, together, mesh.data.rank, mesh.data.size, recipe.data.partition,
        plan.sizes, recipe.parallel.virtual_shards if recipe.parallel.exact else 0,
    )  # fmt: skip
    checkpoints = Checkpoints(run.checkpoints, recipe.checkpoint.keep, world.rank, world.size)
    multiples = rate_multiples(model, shards, recipe.tuning)
    optimizer = build_optimizer(
        sync.shards, recipe.optimizer, recipe.regular, multiples, (wire, mesh.copy), train.precision
    )  # fmt: skip
    evaluate = material.evaluator(together, wire, mesh.data, precision)
    if getattr(task, "writes", False):
        evaluate = _by_itself(evaluate, sync)
    if recipe.regular.ema:
        evaluate = AverageEvaluator(evaluate, optimizer, sync)
    patience = checked_patience(recipe, model, task, sync, evaluate)
    peak_flops = peak_of_all(wire, train.precision)
    parts = Parts(
        recipe, model, task, batches, optimizer, sync, material.budget, evaluate, checkpoints,
        Silence(), precision, sum(shard.shape.numel() for shard in shards.values()), flops, peak_flops, stop_requested,
        auto, patience=patience, adversary=adversary, alike=material.alike,
    )  # fmt: skip
    notes = [*material.notes, *(_resume(parts, run) if resume else []), *auto.notes]
    if world.is_main:
        expected = material.budget.expected_steps(plan.sizes, plan.tokens_per_row)
        parts = replace(parts, telemetry=Telemetry(run, parts.progress.step if resume else None, expected, quiet))
    threads = torch.get_num_threads()
    notes.append(
        f"{told_size(parts, material)} on {world.size} rank{'s' if world.size > 1 else ''} × "
        f"{threads} thread{'s' if threads > 1 else ''}{describe(recipe, mesh)}, {compiled}; "
        f"matrix peak {peak_flops / 1e9:,.0f} GFLOP/s"
    )
    for note in notes:
        parts.telemetry.note(note)
    return parts, material


def checked_patience(recipe: Recipe, model: Transformer, task: Task, sync: Sync, evaluate: Evaluate) -> Patience:
    """The recipe's; a figure that no evaluation tells is told before hours of training, not after: `InputError`."""
    patience = Patience.of(recipe)
    if patience.allowed and patience.metric not in ("eval_loss", getattr(task, "metric", "")):
        with sync.common_weights():
            patience.check(evaluate(model, final=False, most=FEW))
    return patience


def _by_itself(evaluate: Evaluate, sync: Sync) -> Evaluate:
    """An evaluation in which ranks forward the model as often as their own texts grow, not as often as the others.

    Those of other tasks forward it once a batch, of which each rank has as many: they need no more of a divided model than
    training does.
    """

    def evaluated(model: Transformer, **how: Any) -> dict[str, Any]:
        with sync.whole_weights():
            return evaluate(model, **how)

    return evaluated


def told_size(parts: Parts, material: Material) -> str:
    """How many parameters there are, how many of them are trained, and the memory that this takes a rank."""
    if parts.parameters == material.parameters:
        return f"{_millions(material.parameters)} parameters"
    held = {True: 0, False: 0}
    for part in parts.model.parameters():
        held[part.requires_grad] += (part.to_local() if isinstance(part, DTensor) else part).numel()
    stepped_on = sum(shard.value.numel() for shard in parts.sync.shards.values())
    return (
        f"trains {_millions(parts.parameters)} of {_millions(material.parameters)} parameters "
        f"({_bytes(4 * held[False])} of frozen weights in memory, "
        f"{_bytes(WITH_GRADIENT * held[True] + STATE * stepped_on)} of what is learnt)"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 50_000 else f"{count:,}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def make_wire(recipe: Recipe, world: World) -> Wire:
    """The way to the other ranks, as slow as the recipe wants it to be."""
    link = recipe.parallel.link
    slow = world.size > 1 and (link.megabits or link.latency)
    return Wire(world, throttle=Throttle(link.megabits, link.latency, world.device) if slow else None)


def prepare_model(model: Transformer, recipe: Recipe, wire: Wire, mesh: Mesh, tokens: int) -> tuple[Sync, str]:
    """Divide, compile and watch the model, which forwards `tokens` at a time; (its sync, how it was compiled)."""
    shards, compiled = lay_out_model(model, recipe, wire, mesh, tokens)
    sync = make_sync(recipe, wire, mesh, model)
    sync.attach(model, shards)
    return sync, compiled


def lay_out_model(model: Transformer, recipe: Recipe, wire: Wire, mesh: Mesh, tokens: int) -> tuple[Shards, str]:
    """Divide and compile the model, which forwards `tokens` at a time; (what each rank holds, how it was compiled)."""
    wire.make_equal(tensor.data for tensor in (*model.parameters(), *model.buffers()))
    use_native_kernels(model, recipe.train.precision, tokens)
    divided = divide_products(model, wire, mesh)
    recompute_blocks(model, recipe.train.recompute)
    compiled = compile_blocks(model, recipe.train.compile)
    soften_loss(model, recipe.regular)
    return learnt(divided), compiled


def make_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Autocast for bf16, nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def peak_of_all(wire: Wire, precision: str) -> float:
    """The ranks' matrix peaks together, measured by all at the same time, as they compute."""
    wire.gather_objects(None)  # a rank that still builds kernels would take this one's core, and lower the peak
    device = wire.world.device
    return wire.sum(torch.tensor(matrix_peak(device, precision), dtype=torch.float64, device=device)).item()


def matrix_peak(device: torch.device, precision: str = "fp32", seconds: float = 0.4) -> float:
    """FLOP/s of a large matrix product here, now, with this process's threads: what MFU is measured against.

    The fastest of the products that fit into `seconds`: whatever else the machine does would lower it, and flatter MFU.
    """
    size = 8192 if device.type == "cuda" else 1024
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    left @ right
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def _resume(parts: Parts, run: RunDirectory) -> list[str]:
    """Put the newest whole checkpoint back, the same on every rank; returns what is to be told."""
    wire = parts.sync.wire
    path, notes, problem = wire.gather_objects(_newest(parts.checkpoints) if wire.world.is_main else None)[0]
    if problem is not None:
        raise problem
    if path is None:
        raise InputError(f"{run.checkpoints}: no checkpoint to go on from; leave --resume out to begin")
    saved = _opened(wire, run.checkpoints, path)
    put_back(parts, run, saved)
    return [*notes, f"going on from step {saved.step}"]


def put_back(parts: Parts, run: RunDirectory, saved: Saved) -> None:
    """Restore a checkpoint; `InputError` when it is of another model or optimizer."""
    try:
        restore(parts, saved)
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"{run.checkpoints}: the checkpoint doesn't fit this recipe's model and optimizer: {error}"
        ) from None


def _opened(wire: Wire, folder: Path, name: str) -> Saved:
    """The checkpoint, on every rank or on none: `CheckpointError` when one does not see what rank 0 does."""
    saved, problem = None, None
    try:
        saved = Saved.open(folder / name)
    except InputError as error:
        problem = str(error)
    for rank, other in enumerate(wire.gather_objects(problem)):
        if other is not None:
            raise CheckpointError(
                f"rank {rank} doesn't see the checkpoint that rank 0 goes on from: {other}; {folder} must be one folder "
                "that all ranks see"
            )
    assert saved is not None
    return saved


def _newest(checkpoints: Checkpoints | SavedElsewhere) -> tuple[str | None, list[str], CheckpointError | None]:
    """(name of the newest whole checkpoint, what is to be told, what is wrong)."""
    try:
        found = checkpoints.newest()
    except CheckpointError as error:
        return None, [], error
    return (None, [], None) if found is None else (found[0].name, found[1], None)


def _check_equal(wire: Wire, recipe: Recipe, identity: dict[str, str]) -> None:
    """Ranks with different recipes, texts or programs would train apart silently: all refuse, with one message."""
    mine = {"recipe": str(recipe), **identity, "Shoal": code_fingerprint(), "torch": torch.__version__}
    everyone = wire.gather_objects(mine)
    for what, value in everyone[0].items():
        different = [str(rank) for rank, other in enumerate(everyone) if other[what] != value]
        if different:
            ranks = f"rank{'s' * (len(different) > 1)} {', '.join(different)}"
            raise InputError(f"{ranks} started with another {what} than rank 0: give all ranks the same")


@contextmanager
def watch_signals() -> Iterator[Callable[[], bool]]:
    """Remember SIGINT and SIGTERM until a step ends; yields whether one has come, and puts the handlers back.

    A second SIGINT ends a process that stands alone at once. Under Shoal's launcher signals come more than once, and SIGTERM
    also when another rank has failed: then this one, if it does not notice by itself, leaves after some seconds.
    """
    requested: list[int] = []
    launched = ERROR_FOLDER in os.environ

    def remember(number: int, frame: FrameType | None) -> None:
        if requested and number == signal.SIGINT and not launched:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and not stop_is_asked_for():
            backstop = threading.Timer(LEAVING_SECONDS, lambda: None if stop_is_asked_for() else leave_early())
            backstop.daemon = True
            backstop.start()
        requested.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # the launcher's signal can be lost where its agent is just starting ranks; its mark can't
        yield lambda: bool(requested) or (launched and stop_is_asked_for())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
