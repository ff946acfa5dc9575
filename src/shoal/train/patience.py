"""Early stopping: end when evaluations have stopped getting better, and write the best model (Prechelt 1998).

What is held out decides when to stop, so it is no longer quite held out: the loss that is reported at the end is a little
too good. Where that matters, evaluate on text that neither split has.

The state is part of every checkpoint, and an evaluation comes before the checkpoint of its step: a resumed run stops where
one that never stopped would have. All ranks that meet go by rank 0's figure. The checkpoint of the best evaluation is
never removed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.core.errors import InputError, RecipeError
from shoal.core.figures import is_better_lower
from shoal.core.recipe import Recipe

SECONDS = "eval_seconds"


@dataclass
class Patience:
    """Judges evaluations; `allowed` of them in a row may be no better than the best by more than `least` (0: it never ends).

    `best_step` is the step of the best so far (None: there was none), `best` its figure, `since` how many came after.
    """

    allowed: int = 0
    least: float = 0.0
    metric: str = "eval_loss"
    best_step: int | None = None
    best: float = math.nan
    since: int = 0

    @classmethod
    def of(cls, recipe: Recipe) -> "Patience":
        """The recipe's."""
        settings = recipe.evaluation
        return cls(settings.patience, settings.min_improvement, settings.metric)

    @property
    def over(self) -> bool:
        """Whether training should end."""
        return bool(self.allowed) and self.since >= self.allowed

    def check(self, evaluated: Mapping[str, float]) -> None:
        """`InputError` where an evaluation doesn't tell the figure."""
        if self.metric not in evaluated:
            told = ", ".join(name for name, value in evaluated.items() if isinstance(value, float) and name != SECONDS)
            raise InputError(f"'evaluation.metric' is '{self.metric}', which evaluations don't tell; accepted: {told}")

    def judge(self, step: int, evaluated: Mapping[str, float], from_main: Callable[[Any], Any]) -> bool:
        """Take in the evaluation of a step; whether it is the best so far. `InputError` where it lacks the figure.

        `evaluated` is empty on a rank that doesn't evaluate; `from_main` gives all ranks rank 0's value, or None.
        """
        if not self.allowed:
            return False
        verdict = None
        if evaluated:
            self.check(evaluated)
            verdict = self._verdict(step, float(evaluated[self.metric]))
        told = from_main(verdict)
        if told is None:
            return False
        self.best_step, self.best, self.since = told
        return self.best_step == step

    def _verdict(self, step: int, value: float) -> tuple[int | None, float, int]:
        """(the best step, its figure, how many came after)."""
        gain = self.best - value if is_better_lower(self.metric) else value - self.best
        if gain > self.least or (self.best_step is None and math.isfinite(value)):
            return step, value, 0
        return self.best_step, self.best, self.since + 1

    def state_dict(self) -> dict[str, Any]:
        """Where it stands; empty where it is off."""
        if not self.allowed:
            return {}
        best = self.best if self.best_step is not None else None
        return {"metric": self.metric, "best_step": self.best_step, "best": best, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; of another figure, or where it was off, from nothing."""
        if self.allowed and state.get("metric") == self.metric and state["best_step"] is not None:
            self.best_step, self.best, self.since = state["best_step"], state["best"], state["since"]


def check_regular(recipe: Recipe) -> None:
    """`RecipeError` for regularisation that can't be had with the rest of the recipe."""
    if recipe.evaluation.patience and not recipe.evaluation.every:
        raise RecipeError("'evaluation.patience' counts evaluations, and there are none: set 'evaluation.every' (steps)")
    check_pulls(recipe)


def check_pulls(recipe: Recipe) -> None:
    """As `check_regular`, before it is known how often the run is evaluated."""
    regular = recipe.regular
    pulled = [name for name, strength in (("l1", regular.l1), ("l2", regular.l2)) if strength]
    served = recipe.parallel.sync == "server"
    if served and recipe.parallel.server.mode != "synchronous" and (pulled or regular.ema):
        raise RecipeError(
            f"'regular.{pulled[0] if pulled else 'ema'}' acts once a step, and with 'parallel.server.mode' "
            f"{recipe.parallel.server.mode} workers have none in common; accepted: 'parallel.server.mode' synchronous, or 0"
        )
    if pulled and not regular.decoupled and recipe.optimizer.kind == "onebit_adam":
        raise RecipeError(
            f"'regular.{pulled[0]}' goes through gradients where 'regular.decoupled' is false, and 'optimizer.kind' "
            "onebit_adam gets momenta instead of them; accepted: 'regular.decoupled' true"
        )
