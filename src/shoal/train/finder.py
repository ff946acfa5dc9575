"""Which learning rate a recipe can take: the first steps of its training, each at a larger rate than the one before.

The range test of Smith (2015, arXiv:1506.01186), with rates that grow by a constant factor: the loss first hardly falls,
then fast, then not any more, and at last it leaps up. It costs some seconds where trying rates costs a run each.

The steps are real: the recipe's model, data, optimizer and ranks, through the one training loop. Rates are shares of the
recipe's, so that of AdamW and of Muon grow together, in the proportion that the recipe gives them. Nothing is left behind.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError, Interrupted, ShoalError
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, recipe_tree
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import World
from shoal.train.checkpoint import SavedElsewhere
from shoal.train.loop import Batches, train
from shoal.train.optimizers import Optimizer
from shoal.train.schedule import SharedBudget
from shoal.train.setup import build, watch_signals
from shoal.train.telemetry import Record, Silence, Telemetry

LOWEST, HIGHEST = 1e-3, 1e3
"""Shares of the recipe's rates at which the test begins, and ends at the latest."""

MEMORY = 0.8
"""Of the smoothed loss, for what it was a step before: noise of a batch must not look like a slope."""

DIVERGED = 0.5
"""How much of the fall of the loss must be lost again for training to have diverged."""

FEWEST = 20
"""Steps without which there is no curve."""


@dataclass(frozen=True)
class Curve:
    """What was seen: shares of the recipe's rates, and the loss of the step that followed each."""

    shares: list[float]
    losses: list[float]

    @property
    def smoothed(self) -> list[float]:
        """Losses averaged over those before, the nearest most; unbiased at the beginning."""
        values, mean, weight = [], 0.0, 0.0
        for loss in self.losses:
            mean, weight = MEMORY * mean + (1 - MEMORY) * loss, MEMORY * weight + (1 - MEMORY)
            values.append(mean / weight)
        return values


@dataclass(frozen=True)
class Suggestion:
    """The share of the recipe's rates to take, and what it follows from.

    `steepest`: where the loss fell most over a factor of e; `lowest`: where it was least; `diverged`: where it had risen
    again by half of what it had fallen, None where it never did.
    """

    share: float
    steepest: float
    lowest: float
    diverged: float | None


class Rising:
    """An optimizer whose every step has a larger rate than the one before, whatever the schedule says."""

    def __init__(self, inner: Optimizer, shares: Sequence[float]) -> None:
        self.inner, self.shares, self.taken = inner, shares, 0
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict

    def step(self, share: float) -> None:
        """Step at the next rate."""
        self.inner.step(self.shares[min(self.taken, len(self.shares) - 1)])
        self.taken += 1


class Watch(Silence):
    """Sees every step's loss, which is the same on all ranks, and knows when it has seen enough."""

    def __init__(self, shares: Sequence[float], shown: Telemetry | Silence) -> None:
        self.shares, self.shown = shares, shown
        self.losses: list[float] = []

    def step(self, record: Record, progress: float) -> None:
        """A step's record."""
        self.losses.append(record["loss"])
        self.shown.step(record, self.done)

    @property
    def curve(self) -> Curve:
        """Each rate and the loss after it: a step's own loss tells of the steps before. It ends where the loss does."""
        finite = list(takewhile(math.isfinite, self.losses[1:]))
        return Curve(list(self.shares[: len(finite)]), finite)

    @property
    def done(self) -> float:
        """The share of the test that is done; 1 when the loss has left for good."""
        share = len(self.losses) / (len(self.shares) + 1)
        return 1.0 if has_diverged(self.losses) else share


def find_rate(recipe: Recipe, world: World, steps: int, quiet: bool = False) -> Curve:
    """Train `steps` steps at growing rates on this rank; all ranks call it. `InputError` for recipes that it isn't for."""
    if recipe.parallel.sync == "server":
        raise InputError("--find-lr trains with a common step, which servers may lack: set parallel.sync every")
    if steps < FEWEST:
        raise InputError(f"--find-lr-steps is {steps}; accepted: a whole number from {FEWEST}")
    shares = [LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1)) for step in range(steps)]
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder, watch_signals() as stop_requested:
        parts, _ = build(_of_test(recipe, steps), RunDirectory(Path(folder)), world, quiet=quiet)
        watch = Watch(shares, parts.telemetry)
        parts = replace(
            parts,
            optimizer=Rising(parts.optimizer, shares),
            batches=_Unrecorded(parts.batches),
            telemetry=watch,
            budget=SharedBudget(lambda: watch.done),
            checkpoints=SavedElsewhere(Path(folder) / "checkpoints"),
            evaluate=lambda model, final=True: {},
            stop_requested=stop_requested,
        )
        try:
            train(parts)
        except Interrupted:
            raise Interrupted("interrupted; the test of learning rates keeps nothing to go on from") from None
        finally:
            watch.shown.close()
    return watch.curve


def suggest(curve: Curve) -> Suggestion:
    """The rate to take: midway, on a logarithmic scale, between where the smoothed loss falls most steeply and where it is
    least. The first is safe and slow, the second just about still trains, a tenth or so of where it leaps up.

    Raises `ShoalError` where the loss never fell.
    """
    smoothed = curve.smoothed
    least = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    if least == 0 or smoothed[least] > smoothed[0] - 0.01 * abs(smoothed[0]):
        raise ShoalError(
            "the loss fell at no rate, so none can be suggested: is the recipe right, and is there enough text? "
            "--find-lr-steps takes more steps"
        )
    slopes = [
        (smoothed[index + 1] - smoothed[index - 1]) / math.log(curve.shares[index + 1] / curve.shares[index - 1])
        for index in range(1, least)
    ]
    steepest = curve.shares[1 + min(range(len(slopes)), key=slopes.__getitem__)] if slopes else curve.shares[least]
    left = has_diverged(curve.losses)
    return Suggestion(
        math.sqrt(steepest * curve.shares[least]),
        steepest,
        curve.shares[least],
        curve.shares[-1] if left else None,
    )


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the loss is not finite any more, or has risen again, smoothed, by `DIVERGED` of its fall."""
    if not losses or not math.isfinite(losses[-1]):
        return bool(losses)
    smoothed = Curve([], list(losses)).smoothed
    least = min(smoothed)
    return len(losses) >= FEWEST and smoothed[-1] > least + DIVERGED * max(smoothed[0] - least, 0.1 * abs(least))


def lines(recipe: Recipe, share: float) -> dict[str, float]:
    """What to write into the recipe: its keys with the suggested rates, to two digits."""
    settings = recipe.optimizer
    rates = {"optimizer.learning_rate": settings.learning_rate}
    if settings.kind == "muon":
        rates["optimizer.muon_learning_rate"] = settings.muon_learning_rate
    return {key: float(f"{rate * share:.1e}") for key, rate in rates.items()}


class _Unrecorded:
    """Batches that keep no ledger: nobody will go on from here."""

    def __init__(self, inner: Batches) -> None:
        self.inner, self.next_step, self.read_ahead = inner, inner.next_step, inner.read_ahead
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict

    def close(self, step: int, gather: Any) -> None:
        """None."""


def _of_test(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with what the test needs: an end, no other one, and steps of one size that all ranks take together."""
    tree = recipe_tree(recipe)
    tree["train"] |= {"steps": steps + 1, "tokens": 0, "minutes": 0.0, "max_skipped": steps}
    tree["schedule"]["batch_start"] = 0
    tree["checkpoint"]["every"] = tree["evaluation"]["every"] = tree["evaluation"]["patience"] = 0
    tree["data"]["weights"] = recipe.data.weights[:1]  # later stages of a mixture may begin within these few steps
    if recipe.parallel.sync == "local":
        tree["parallel"]["codec"]["kind"] = "none"
    tree["parallel"]["sync"] = "every"
    return build_recipe(tree)
