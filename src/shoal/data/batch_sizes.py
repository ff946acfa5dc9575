"""How many sequences a step reads: always as many, or few at first and more as the run goes on.

Early in training gradients of few sequences agree with those of many, and the rest of a large batch is wasted; the batch
beyond which that is so, the gradient noise scale, grows as the loss falls (McCandlish et al. 2018, arXiv:1812.06162).
GPT-3 went from 32,000 tokens to its full batch over its first billions (Brown et al. 2020, arXiv:2005.14165). Here the batch
grows in equal stages, whole multiples of its first size.

What a step reads follows from the recipe and the run's position alone, never from ranks or from the clock: so ranks agree
without a word, a run goes on at any world size with the same steps, and each stage is an entry of the ledger.
"""

import math
from dataclasses import dataclass

from shoal.core.errors import CorpusError, RecipeError
from shoal.core.recipe import Recipe

ROUNDING = 1e-9
"""A share of the run that falls short of a whole step by less is that step."""


@dataclass(frozen=True)
class Stage:
    """From this step (from 0) and position on, a step reads so many sequences."""

    step: int
    position: int
    batch: int


@dataclass(frozen=True)
class BatchSizes:
    """The stages of a run, each but the last a whole number of steps."""

    stages: tuple[Stage, ...]

    @classmethod
    def constant(cls, batch: int) -> "BatchSizes":
        """Always as many."""
        return cls((Stage(0, 0, batch),))

    @classmethod
    def of(cls, recipe: Recipe, tokens: float) -> "BatchSizes":
        """The recipe's, for sequences of so many tokens on average; `RecipeError` for what can't grow so."""
        train, start, until = recipe.train, recipe.schedule.batch_start, recipe.schedule.batch_until
        if not start or start == train.global_batch:
            return cls.constant(train.global_batch)
        _check(recipe)
        last = train.global_batch // start - 1
        stages: list[Stage] = []
        step = position = 0
        for number in range(last):
            stages.append(Stage(step, position, start * (number + 1)))
            end = until * (number + 1) / last  # the share of the run at which the next stage begins
            left = [end * train.steps - step] if train.steps else []
            left += [(end * train.tokens / tokens - position) / stages[-1].batch] if train.tokens else []
            # whichever of steps and tokens is further tells how far the run is
            steps = max(0, math.ceil(min(left) - ROUNDING))
            step, position = step + steps, position + steps * stages[-1].batch
        stages.append(Stage(step, position, train.global_batch))
        return cls(tuple(one for one, after in zip(stages, [*stages[1:], None], strict=True) if not _empty(one, after)))

    @property
    def smallest(self) -> int:
        """Sequences of the first step."""
        return self.stages[0].batch

    @property
    def largest(self) -> int:
        """Sequences of the last step."""
        return self.stages[-1].batch

    def check_ranks(self, world: int) -> None:
        """Raise `CorpusError` where a step leaves a rank without a sequence."""
        if self.smallest < world:
            key = "train.global_batch" if len(self.stages) == 1 else "schedule.batch_start"
            raise CorpusError(f"{key} is {self.smallest}, less than one sequence for each of {world} ranks")

    def at(self, position: int) -> int:
        """Sequences of the step that begins at a position."""
        return next(stage.batch for stage in reversed(self.stages) if stage.position <= position)

    def position_after(self, steps: int) -> int:
        """Sequences that so many steps read."""
        stage = next(stage for stage in reversed(self.stages) if stage.step <= steps)
        return stage.position + (steps - stage.step) * stage.batch

    def steps_for(self, sequences: float) -> int:
        """Steps until that many sequences are read, or more."""
        stage = next((stage for stage in reversed(self.stages) if stage.position < sequences), self.stages[0])
        return stage.step + max(0, math.ceil((sequences - stage.position) / stage.batch))


def sequences_at_once(recipe: Recipe, data_ranks: int) -> int:
    """Sequences of a rank's forward pass, at most: `train.micro_batch`, or its share of the first step."""
    train = recipe.train
    start = train.global_batch if recipe.parallel.exact else recipe.schedule.batch_start or train.global_batch
    share = -(-train.global_batch // data_ranks)
    return min(share, train.micro_batch or -(-start // data_ranks))


def _empty(stage: Stage, after: Stage | None) -> bool:
    return after is not None and after.step == stage.step


def _check(recipe: Recipe) -> None:
    train, start = recipe.train, recipe.schedule.batch_start
    if not (train.steps or train.tokens):
        raise RecipeError(
            "'schedule.batch_start' lets the batch grow over the run's steps or tokens, not by the clock, which never "
            "repeats: set 'train.steps' or 'train.tokens'"
        )
    if train.global_batch % start:
        raise RecipeError(
            f"'schedule.batch_start' is {start}, of which 'train.global_batch' ({train.global_batch}) is no multiple: the "
            "batch grows in multiples of its first size"
        )
