"""`parallel.sync: auto`: the link and a step are measured, and `train.choice` says how ranks should meet.

What is measured is thrown away: a batch of nothing in particular goes forward and backward before gradients are watched, so
training is what it would have been. Ranks inside one machine always train plainly, and measure nothing.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.core import recipe as schema
from shoal.core.recipe import Recipe
from shoal.data.sequences import Sequences
from shoal.models.transformer import Transformer
from shoal.parallel.codecs import CODECS
from shoal.parallel.coded_sum import MESSAGE_BYTES, CodedSum
from shoal.parallel.cost import Compute
from shoal.parallel.link import Link, measure, on_one_machine
from shoal.parallel.wire import Wire
from shoal.tasks import Task
from shoal.train.checkpoint import newest_state
from shoal.train.choice import ENOUGH, LOCAL_CODECS, MILDEST_FIRST, NOTHING_LAST, UNKNOWN, Choice, Costs, Last, choose

WINDOW = 20
"""Steps over which drift is looked for."""

PASSES_TIMED = 3
"""Runs of the batch that is thrown away; the first compiles."""

SUMS_TIMED, LONGEST_SUM = 4, 0.3
"""Sums of each codec that are timed, and the seconds that one may travel."""


class Auto:
    """Decides for one run, and watches whether it would still decide so.

    `decided`: what a checkpoint was made with, which holds; the link and the computing are measured only without.
    """

    def __init__(self, recipe: Recipe, wire: Wire, decided: dict[str, Any] | None = None) -> None:
        self.recipe, self.wire = recipe, wire
        kept = decided if self.asked else None
        self.choice = None if kept is None else Choice.of_state(kept)
        self.compute: Compute | None = None
        self.costs: Costs = UNKNOWN
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
        self, model: Transformer, task: Task, precision: AbstractContextManager[None], sequences: int, passes: int
    ) -> Recipe:
        """The recipe as chosen; every rank must call it. A step is `passes` of `sequences` on this rank."""
        if not self.asked:
            return self.recipe
        if self.choice is None:
            if on_one_machine(self.wire):
                return self.recipe
            self.parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            self.last = Last.of_model(self.recipe, model, self.wire.world.size)
            self.compute = time_step(model, task, precision, self.wire, sequences, passes)
            self.choice = self._now()
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
        now = self._now()
        same = (now.sync, now.codec, now.every) == (self.choice.sync, self.choice.codec, self.choice.every)
        note(f"the link has changed ({blocked:.0%} of a step is waiting). {now.reasons[0]}")
        note(
            f"{now.reasons[1]}; {'as it does' if same else 'a run that begins now would; this one keeps what it began with'}"
        )

    def _now(self) -> Choice:
        assert self.compute is not None
        ranks, settings = self.wire.world.size, self.recipe.parallel
        # where steps grow, each is a multiple of the first
        equal_shares = (self.recipe.schedule.batch_start or self.recipe.train.global_batch) % ranks == 0
        link, inner = measure(self.wire), self.recipe.optimizer.kind
        if not self.costs and self.wire.world.device.type == "cpu":
            self.costs = time_sums(self.wire, settings.codec, link)
        return choose(link, self.compute, self.parameters, ranks, settings, self.last, equal_shares, inner, self.costs)


def decided(wire: Wire, checkpoints: Path) -> dict[str, Any] | None:
    """What the run of the newest checkpoint had chosen by itself, the same on every rank; None if nothing."""
    found = newest_state(checkpoints) if wire.world.is_main else None
    chosen: dict[str, Any] | None = wire.gather_objects(found and found[1].get("chosen"))[0]
    return chosen


def time_step(
    model: Transformer, task: Task, precision: AbstractContextManager[None], wire: Wire, sequences: int, passes: int
) -> Compute:
    """Seconds of forward and backward on the slowest rank, for a step of `passes` of `sequences`; leaves no trace."""
    device = wire.world.device
    shape = (sequences, model.config.context + 1)
    tokens = (np.arange(np.prod(shape)) % model.config.vocabulary).astype(np.int64).reshape(shape)
    rows = Sequences.of_windows(tokens)
    fastest = torch.full((3,), torch.inf, dtype=torch.float64, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for passed in range(PASSES_TIMED):
            if passed == 1:
                wire.gather_objects(None)  # what shares a core with a rank that still compiles would seem slow
            began, used = time.perf_counter(), time.thread_time()
            with precision:
                loss_sum, _ = task.loss(model, task.batch(rows, device))
            _wait(device)
            between = time.perf_counter()
            loss_sum.backward()
            _wait(device)
            ended = time.perf_counter()
            waited = (ended - began) / max(time.thread_time() - used, 1e-9)  # for a core that others have as well
            took = torch.tensor([between - began, ended - between, waited], dtype=torch.float64, device=device)
            if passed:
                fastest = torch.minimum(fastest, took)
            for parameter in model.parameters():
                parameter.grad = None
    forward, backward, waited = wire.largest(fastest, wire.everyone).tolist()
    core = 1.0 if device.type == "cuda" else min(1.0, 1 / waited)
    return Compute(passes * forward + (passes - 1) * backward, backward, core=core)


def time_sums(wire: Wire, settings: schema.Codec, link: Link) -> Costs:
    """What a sum costs the slowest rank's core for each number, with those codecs of which the link soon carries a message.

    By the processor time of this process, which other programs don't lengthen, nor do interrupts count; every rank must
    call it.
    """
    numbers, costs = MESSAGE_BYTES // 4, {}
    for kind in dict.fromkeys((*MILDEST_FIRST, *LOCAL_CODECS)):
        sums = CodedSum(wire, wire.everyone, CODECS[kind](settings))
        length = numbers - numbers % sums.multiple
        if link.seconds(sums.wire_bytes(length)) > LONGEST_SUM:
            continue
        values = torch.randn(length, generator=torch.Generator().manual_seed(1))
        dropped, took = torch.zeros_like(values), []
        for _ in range(SUMS_TIMED):
            wire.gather_objects(None)
            began = time.process_time()
            for _stage in sums.sum(values.clone(), dropped):
                pass
            took.append(time.process_time() - began)
        least = torch.tensor(min(took), dtype=torch.float64)
        costs[kind] = wire.largest(least, wire.everyone).item() / length
    return costs


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
