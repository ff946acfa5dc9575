"""How far a run has come, and the learning rate that belongs there.

Progress is the share used of whichever budget (steps, tokens, minutes) ends first, so that a schedule always ends where the
run does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from shoal.core import recipe
from shoal.core.errors import RecipeError
from shoal.data.batch_sizes import BatchSizes


@dataclass(frozen=True)
class Budget:
    """When a run ends; 0 means no limit."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, train: recipe.Train) -> "Budget":
        """The recipe's budget; `RecipeError` when there is none."""
        budget = cls(train.steps, train.tokens, train.minutes * 60)
        if not (budget.steps or budget.tokens or budget.seconds):
            raise RecipeError("the run has no end: set train.steps, train.tokens or train.minutes")
        return budget

    def progress(self, step: int, tokens: int, seconds: float) -> float:
        """Share of the run that is done after `step` steps; 1 or more means it is over."""
        shares = [
            used / limit for used, limit in ((step, self.steps), (tokens, self.tokens), (seconds, self.seconds)) if limit
        ]
        return max(shares)

    def expected_steps(self, sizes: BatchSizes, tokens: float) -> int | None:
        """Steps that the run will take, of sequences of so many tokens on average, where that is known beforehand."""
        known = [self.steps] if self.steps else []
        known += [sizes.steps_for(self.tokens / tokens)] if self.tokens else []
        return min(known, default=None)


class SharedBudget:
    """The budget of workers that have no common step: how much of it all of them have used, `done` tells."""

    def __init__(self, done: Callable[[], float]) -> None:
        self.done = done

    def progress(self, step: int, tokens: int, seconds: float) -> float:
        """Share of the run that is done, whatever this worker's part in it; 1 or more means it is over."""
        return self.done()


def learning_rate_share(schedule: recipe.Schedule, progress: float, step: int) -> float:
    """The learning rate of step `step` (from 0), as a share of its peak.

    Warm-up begins at a tenth of the peak, not at zero, so that the first gradients are not wasted.
    """
    if not schedule.warmup:
        warming = 1.0
    elif schedule.warmup >= 1:
        warming = max(0.1, (step + 1) / schedule.warmup)
    else:
        warming = max(0.1, progress / schedule.warmup)
    return min(1.0, warming) * _decay(schedule, min(1.0, progress))


def _decay(schedule: recipe.Schedule, progress: float) -> float:
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "wsd":
        past = 0.0 if not schedule.decay else max(0.0, progress - (1 - schedule.decay)) / schedule.decay
        return 1 - (1 - schedule.final) * past
    past = progress
    if schedule.kind == "cosine":
        past = (1 - math.cos(math.pi * progress)) / 2
    return 1 - (1 - schedule.final) * past
