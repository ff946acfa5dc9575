"""Whatever is divided, over however many ranks: is it the same training?

One small model, one stream of batches in which ranks hold different numbers of targets (padded sequences, sequences without
any, a last micro-batch that is not full), trained for some steps by the real loop in every division, against the plainest
training there is: one process, all sequences at once, in fp64, torch's own cross entropy and AdamW, or Muon undivided.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shoal.core.recipe import Optimizer as OptimizerSettings
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe
from shoal.core.run_directory import RunDirectory
from shoal.core.seeds import derive_seed
from shoal.data.partition import rank_positions
from shoal.data.sequences import Sequences
from shoal.models.loss import IGNORED
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis, make_mesh
from shoal.parallel.shards import whole_shards
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import Causal, Task
from shoal.train.auto import Auto
from shoal.train.checkpoint import Checkpoints, Saved
from shoal.train.loop import Parts, train
from shoal.train.model_setup import check_divisible
from shoal.train.models import build_model
from shoal.train.optimizers import build_optimizer
from shoal.train.schedule import Budget, learning_rate_share
from shoal.train.setup import make_precision, prepare_model
from shoal.train.strategies import mesh_sizes
from shoal.train.telemetry import Silence

VOCABULARY = 53  # odd, so that dividing it leaves a remainder
CONTEXT = 16
GLOBAL_BATCH = 10  # four ranks get 3, 3, 2 and 2
STEPS = 20
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A division of the work: over so many ranks, with these keys of the recipe."""

    name: str
    ranks: int
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def optimizer(self) -> str:
        """Its kind."""
        kind: str = self.keys.get("optimizer", {}).get("kind", "adamw")
        return kind


def _case(name: str, ranks: int, micro_batch: int = 0, **parallel: Any) -> Case:
    return Case(name, ranks, {"parallel": parallel, "train": {"micro_batch": micro_batch}})


def _with_muon(name: str, ranks: int, **parallel: Any) -> Case:
    return Case(f"muon, {name}", ranks, {"parallel": parallel, "optimizer": {"kind": "muon", "muon_row_decay": 0.9}})


CASES = (
    _case("one rank", 1),
    _case("one rank, accumulating", 1, micro_batch=4),
    _case("replicate", 2),
    _case("replicate, accumulating", 2, micro_batch=2),
    _case("replicate, through sockets", 2, sync="every"),
    _case("zero1", 2, shard="zero1"),
    _case("zero1, accumulating", 2, micro_batch=2, shard="zero1"),
    _case("zero2", 2, shard="zero2"),
    _case("zero2, accumulating", 2, micro_batch=2, shard="zero2"),
    _case("zero3", 2, shard="zero3"),
    _case("zero3, accumulating", 2, micro_batch=2, shard="zero3"),
    _case("tensor 2", 2, tensor=2),
    _case("replicate", 4),
    _case("replicate, through sockets", 4, sync="every"),
    _case("zero1", 4, shard="zero1"),
    _case("zero2", 4, shard="zero2"),
    _case("zero3", 4, shard="zero3"),
    _case("replicate 2 × zero1 over 2", 4, shard="zero1", shard_ranks=2),
    _case("replicate 2 × zero3 over 2, accumulating", 4, micro_batch=2, shard="zero3", shard_ranks=2),
    _case("replicate 2 × tensor 2", 4, tensor=2),
    _case("zero1 over 2 × tensor 2", 4, shard="zero1", tensor=2),
    _case("zero2 over 2 × tensor 2", 4, shard="zero2", tensor=2),
    _case("zero3 over 2 × tensor 2, accumulating", 4, micro_batch=2, shard="zero3", tensor=2),
    Case("zero3, all recomputed", 2, {"parallel": {"shard": "zero3"}, "train": {"recompute": "full"}}),
    Case("tensor 2, products kept", 2, {"parallel": {"tensor": 2}, "train": {"recompute": "selective"}}),
    Case("zero3, compiled", 2, {"parallel": {"shard": "zero3"}, "train": {"compile": "on"}}),
    Case("tensor 2, compiled", 2, {"parallel": {"tensor": 2}, "train": {"compile": "on"}}),
    _with_muon("one rank", 1),
    _with_muon("replicate", 2),
    _with_muon("zero1", 2, shard="zero1"),
    _with_muon("zero2", 2, shard="zero2"),
    _with_muon("tensor 2", 2, tensor=2),
    _with_muon("zero1", 4, shard="zero1"),
    _with_muon("zero3", 4, shard="zero3"),
    _with_muon("replicate 2 × zero3 over 2", 4, shard="zero3", shard_ranks=2),
    _with_muon("zero1 over 2 × tensor 2", 4, shard="zero1", tensor=2),
    _with_muon("zero3 over 2 × tensor 2", 4, shard="zero3", tensor=2),
)


@dataclass(frozen=True)
class Trace:
    """What a training was: every step's loss and gradient norm, and the weights it ended with."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """The largest relative errors against the reference; weights by the norm of each tensor."""

    loss: float
    norm: float
    weights: float

    @property
    def fine(self) -> bool:
        """Within the tolerance."""
        return max(self.loss, self.norm, self.weights) <= TOLERANCE

    @classmethod
    def between(cls, trace: Trace, reference: Trace) -> "Difference":
        """Of two trainings."""
        errors = (
            ((trace.weights[name].double() - value).norm() / value.norm().clamp(min=1e-6)).item()
            for name, value in reference.weights.items()
        )
        return cls(_largest(trace.losses, reference.losses), _largest(trace.norms, reference.norms), max(errors))


def _largest(values: Iterable[float], expected: Iterable[float]) -> float:
    return max(abs(value / wanted - 1) for value, wanted in zip(values, expected, strict=True))


def make_recipe(case: Case, preset: str = "qwen3-tiny", device: str = "cpu") -> Recipe:
    """The small model's recipe with a case's keys."""
    tree: dict[str, Any] = {
        "name": "parity",
        "model": {"preset": preset, "context": CONTEXT, "layers": 2, "dim": 32, "heads": 4, "kv_heads": 4, "head_dim": 8}
        | {"hidden": 48},
        "train": {"steps": STEPS, "global_batch": GLOBAL_BATCH, "compile": "off", "device": device, "clip": 0.5},
        "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-6},
        "parallel": {},
    }
    for section, keys in case.keys.items():
        tree[section] |= keys
    return build_recipe(tree)


class UnevenBatches:
    """As `TrainingBatches`, of random tokens with sequences that end early; some have no target at all."""

    def __init__(self, recipe: Recipe, data: Axis) -> None:
        self.recipe, self.data = recipe, data
        self.context, self.position = CONTEXT, 0

    def whole(self, step: int) -> NDArray[np.int64]:
        """All windows of a step [global batch, context + 1]."""
        random = np.random.default_rng(derive_seed(self.recipe.seed, "parity", step))
        windows = random.integers(0, VOCABULARY, (GLOBAL_BATCH, CONTEXT + 1))
        lengths = random.integers(0, CONTEXT + 2, GLOBAL_BATCH)
        windows[np.arange(CONTEXT + 1) >= lengths[:, None]] = -1
        windows[0, :5] = random.integers(0, VOCABULARY, 5)  # so that a step is never empty
        return windows

    def next_step(self) -> list[tuple[int, Sequences]]:
        """This rank's micro-batches, as many as every other rank's."""
        step = self.position // GLOBAL_BATCH
        mine = rank_positions(0, GLOBAL_BATCH, self.data.rank, self.data.size)
        windows = self.whole(step)[mine]
        self.position += GLOBAL_BATCH
        most = -(-GLOBAL_BATCH // self.data.size)
        size = self.recipe.train.micro_batch or most
        none = np.full((1, CONTEXT + 1), -1, dtype=np.int64)
        pieces = (windows[start : start + size] if start < len(windows) else none for start in range(0, most, size))
        return [(self.position, Sequences.of_windows(piece)) for piece in pieces]

    def read_ahead(self) -> None:
        """Nothing: there is nothing to read."""

    def close(self, step: int, gather: Any) -> None:
        """No ledger."""

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.position = state["position"]


class _Records(Silence):
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def step(self, record: Any, progress: float) -> None:
        self.records.append(record)


def trace(world: World, case: Case, folder: Path, preset: str = "qwen3-tiny", task: Task | None = None) -> Trace | None:
    """Train a case on this rank, through a checkpoint in `folder`; the whole of it on the main rank."""
    recipe = make_recipe(case, preset, world.device.type)
    wire = Wire(world)
    mesh = make_mesh(world, mesh_sizes(recipe, world.size))
    model = build_model(recipe, VOCABULARY, world.device)
    check_divisible(model.config, mesh.tensor.size)
    sync, _ = prepare_model(model, recipe, wire, mesh, GLOBAL_BATCH * CONTEXT)
    optimizer = build_optimizer(sync.shards, recipe.optimizer, recipe.regular, meeting=(wire, mesh.copy))
    telemetry = _Records()
    run = RunDirectory(folder)
    wire.gather_objects(None)
    parts = Parts(
        recipe, model, task or Causal(), UnevenBatches(recipe, mesh.data), optimizer, sync, Budget.of(recipe.train),
        lambda model, final=True: {"eval_loss": math.nan},
        Checkpoints(run.checkpoints, 1, world.rank, world.size), telemetry, make_precision("fp32", world.device),
        1, 1.0, 1.0, lambda: False, Auto(recipe, wire),
    )  # fmt: skip
    train(parts)
    wire.gather_objects(None)
    if not world.is_main:
        return None
    found = parts.checkpoints.newest()
    assert found is not None
    saved = Saved.open(found[0])
    weights = {name: saved.read("model", name) for name in saved.wholes["model"]}
    records = telemetry.records
    return Trace([line["loss"] for line in records], [line["grad_norm"] for line in records], weights)


def reference(preset: str = "qwen3-tiny", task: Task | None = None, optimizer: str = "adamw") -> Trace:
    """The plainest training with an optimizer, in fp64."""
    plainest = next(case for case in CASES if case.ranks == 1 and case.optimizer == optimizer)
    recipe = make_recipe(plainest, preset)
    model = build_model(recipe, VOCABULARY, torch.device("cpu")).double()
    adamw, settings = optimizer == "adamw", recipe.optimizer
    step_at = _plain_adamw(model, settings) if adamw else build_optimizer(whole_shards(model), settings).step
    task = task or Causal()
    batches, losses, norms = UnevenBatches(recipe, Axis()), [], []
    for step in range(STEPS):
        batch = task.batch(Sequences.of_windows(batches.whole(step)), torch.device("cpu"))
        logits = model.project(model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)).flatten(0, 1)
        loss = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is None:  # a head that the task doesn't use decays, too
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip)
        step_at(learning_rate_share(recipe.schedule, step / STEPS, step))
        model.zero_grad()
        losses.append(loss.item())
        norms.append(norm.item())
    return Trace(losses, norms, {name: value.detach() for name, value in model.named_parameters()})


def _plain_adamw(model: Transformer, settings: OptimizerSettings) -> Callable[[float], None]:
    """torch's own; a step takes its share of the learning rate."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)

    def step_at(share: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        optimizer.step()

    return step_at
