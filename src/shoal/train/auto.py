"""`parallel.sync: auto`: the link and a step are measured, and `train.choice` says how ranks should meet.

What is measured is thrown away: a batch of nothing in particular goes forward and backward, and no weight changes, so
training is what it would have been. A codec at every step is tried on such a batch before it is taken: what encoding and
carrying take from the core that computes, and how long ranks wait for what comes last, differs by machine. Ranks inside one
machine always train plainly, and measure nothing.
"""

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.core.recipe import Recipe
from shoal.data.sequences import Sequences
from shoal.models.transformer import Transformer
from shoal.parallel.coded_all_reduce import CodedAllReduce
from shoal.parallel.cost import Compute
from shoal.parallel.link import Link, measure, on_one_machine
from shoal.parallel.mesh import Mesh
from shoal.parallel.shards import Shards
from shoal.parallel.wire import Wire
from shoal.tasks import Task
from shoal.train.checkpoint import newest_state
from shoal.train.choice import ENOUGH, NOTHING_LAST, Choice, Last, choose, cost_of
from shoal.train.strategies import make_sync

WINDOW = 20
"""Steps over which drift is looked for."""

PASSES_TIMED = 3
"""Runs of the batch that is thrown away; the first compiles."""

PAIRS_TIMED = 4
"""Runs of it with gradients that travel in a codec, and as many without."""

MOST_SECONDS = 30.0
"""Of such runs, after which no more are begun."""


class Auto:
    """Decides for one run, and watches whether it would still decide so.

    `decided`: what a checkpoint was made with, which holds; the link and the computing are measured only without.
    """

    def __init__(self, recipe: Recipe, wire: Wire, decided: dict[str, Any] | None = None) -> None:
        self.recipe, self.wire = recipe, wire
        kept = decided if self.asked else None
        self.choice = None if kept is None else Choice.of_state(kept)
        self.compute: Compute | None = None
        self.costs: dict[str, float] = {}
        self.parameters, self.last = 0, NOTHING_LAST
        self.seconds: list[tuple[float, float]] = []
        self.usual: float | None = None

    @property
    def asked(self) -> bool:
        """Whether there is anything to decide."""
        parallel = self.recipe.parallel
        explicit = parallel.sync != "auto" or parallel.codec.kind != "none" or parallel.exact
        return not (explicit or self.wire.world.size == 1 or parallel.shard != "replicate" or parallel.tensor > 1)

    def decide(
        self,
        model: Transformer,
        task: Task,
        precision: AbstractContextManager[None],
        sequences: int,
        passes: int,
        mesh: Mesh,
        shards: Shards,
    ) -> Recipe:
        """The recipe as chosen; every rank must call it. A step is `passes` of `sequences` on this rank."""
        if not self.asked:
            return self.recipe
        if self.choice is None:
            if on_one_machine(self.wire):
                return self.recipe
            self.parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            self.last = Last.of_model(self.recipe, model, self.wire.world.size)
            rehearsal = Rehearsal(model, task, precision, self.wire, sequences)
            self.compute = rehearsal.time_step(passes)
            link = measure(self.wire)
            self.choice = self._now(link)
            while self._must_rehearse(kind := self.choice.codec):
                longer = rehearsal.time_meeting(self.choice.apply(self.recipe), mesh, shards)
                ranks, settings = self.wire.world.size, self.recipe.parallel
                self.costs[kind] = cost_of(kind, longer, link, self.compute, self.parameters, ranks, settings, self.last)
                self.choice = self._now(link)
        return self.choice.apply(self.recipe)

    @property
    def notes(self) -> list[str]:
        """What is to be told at the start."""
        if self.choice is None:
            return []
        lines = list(self.choice.reasons)
        return lines if self.compute is not None else [f"as chosen when this run began: {lines[1]}"]

    @property
    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must keep."""
        return None if self.choice is None else asdict(self.choice)

    def keep(self, step: float, blocked: float) -> None:
        """Remember the seconds of a step, and of those blocked."""
        self.seconds = [*self.seconds[1 - WINDOW :], (step, blocked)]

    def look_again(self, note: Callable[[str], None]) -> None:
        """Measure again where the share of waiting has changed; every rank must call it after the same step.

        Tells what would be chosen now. The run keeps what it has: a codec's feedback and the copies of a local update
        are its state, and changing them in mid-run would be another training.
        """
        if self.compute is None or self.choice is None or len(self.seconds) < WINDOW:
            return
        mean = statistics.mean(step for step, _ in self.seconds)
        blocked = statistics.mean(blocked for _, blocked in self.seconds) / mean
        self.seconds = []
        self.usual = blocked if self.usual is None else self.usual
        if not self.wire.gather_objects(abs(blocked - self.usual) > 1 - ENOUGH)[0]:
            return
        self.usual = blocked
        now = self._now(measure(self.wire))
        same = (now.sync, now.codec, now.every) == (self.choice.sync, self.choice.codec, self.choice.every)
        note(f"the link has changed ({blocked:.0%} of a step is waiting). {now.reasons[0]}")
        note(
            f"{now.reasons[1]}; {'as it does' if same else 'a run that begins now would; this one keeps what it began with'}"
        )

    def _must_rehearse(self, codec: str) -> bool:
        """Whether a codec at every step was chosen by what others have measured."""
        assert self.choice is not None
        known = codec == "none" or codec in self.costs
        return not known and self.choice.sync == "every" and self.wire.world.device.type == "cpu"

    def _now(self, link: Link) -> Choice:
        assert self.compute is not None
        ranks, settings = self.wire.world.size, self.recipe.parallel
        # where steps grow, each is a multiple of the first
        equal_shares = (self.recipe.schedule.batch_start or self.recipe.train.global_batch) % ranks == 0
        inner = self.recipe.optimizer.kind
        return choose(link, self.compute, self.parameters, ranks, settings, self.last, equal_shares, inner, self.costs)


def decided(wire: Wire, checkpoints: Path) -> dict[str, Any] | None:
    """What the run of the newest checkpoint had chosen by itself, the same on every rank; None if nothing."""
    found = newest_state(checkpoints) if wire.world.is_main else None
    chosen: dict[str, Any] | None = wire.gather_objects(found and found[1].get("chosen"))[0]
    return chosen


@dataclass(frozen=True)
class Rehearsal:
    """Forward and backward of `sequences` of nothing in particular, whose gradients are thrown away: no weight changes."""

    model: Transformer
    task: Task
    precision: AbstractContextManager[None]
    wire: Wire
    sequences: int

    def time_step(self, passes: int) -> Compute:
        """Seconds of forward and backward on the slowest rank, for a step of so many passes."""
        device = self.wire.world.device
        fastest = torch.full((3,), torch.inf, dtype=torch.float64, device=device)
        for passed in range(PASSES_TIMED):
            if passed == 1:
                self.wire.gather_objects(None)  # what shares a core with a rank that still compiles would seem slow
            used = time.thread_time()
            forward, backward = self._pass()
            for parameter in self.model.parameters():
                parameter.grad = None
            waited = (forward + backward) / max(time.thread_time() - used, 1e-9)  # for a core that others have as well
            if passed:
                took = torch.tensor([forward, backward, waited], dtype=torch.float64, device=device)
                fastest = torch.minimum(fastest, took)
        forward, backward, waited = self.wire.largest(fastest, self.wire.everyone).tolist()
        core = 1.0 if device.type == "cuda" else min(1.0, 1 / waited)
        return Compute(passes * forward + (passes - 1) * backward, backward, core=core)

    def time_meeting(self, recipe: Recipe, mesh: Mesh, shards: Shards) -> float:
        """Seconds that a step of one pass takes longer where gradients travel as the recipe says."""
        sync = make_sync(recipe, self.wire, mesh, self.model)  # whose channels stay open, idle
        assert isinstance(sync, CodedAllReduce)
        alone, beside = self._fastest(sync, shards)
        self.model.tied_gradients = None
        del sync
        gc.collect()  # gradients and feedback, which refer to each other: there will be others
        return max(0.0, beside - alone)

    def _fastest(self, sync: CodedAllReduce, shards: Shards) -> tuple[float, float]:
        """Seconds of a pass whose gradients stay, and of one whose gradients travel, on the slowest rank."""
        sync.attach(self.model, shards)
        together = self.model.tied_gradients
        fastest, spent = torch.full((2,), torch.inf, dtype=torch.float64), 0.0  # others on a machine only make it slower
        for _ in range(PAIRS_TIMED):
            self.model.tied_gradients = None
            self.wire.gather_objects(None)
            alone = sum(self._pass())
            sync.after_step()
            self.model.tied_gradients = together
            self.wire.gather_objects(None)
            beside = sum(self._pass(sync))
            sync.after_step()
            both = self.wire.largest(torch.tensor([alone, beside], dtype=torch.float64), self.wire.everyone)
            fastest = torch.minimum(fastest, both)
            spent += both.sum().item()
            if spent > MOST_SECONDS:
                break
        sync.detach()
        alone, beside = fastest.tolist()
        return alone, beside

    def _pass(self, sync: CodedAllReduce | None = None) -> tuple[float, float]:
        """Seconds of forward, and of backward with gradients that travel meanwhile; they are there afterwards."""
        device = self.wire.world.device
        shape = (self.sequences, self.model.config.context + 1)
        tokens = (np.arange(np.prod(shape)) % self.model.config.vocabulary).astype(np.int64).reshape(shape)
        rows = Sequences.of_windows(tokens)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            began = time.perf_counter()
            if sync is not None:
                sync.begin_backward(last=True)
            with self.precision:
                loss_sum, _ = self.task.loss(self.model, self.task.batch(rows, device))
            _wait(device)
            between = time.perf_counter()
            loss_sum.backward()
            _wait(device)
            if sync is not None:
                sync.before_step()
                self.wire.largest(torch.zeros(1, device=device), self.wire.everyone)  # the small sum that ends a step
            ended = time.perf_counter()
        return between - began, ended - between


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
