"""What a run's two learning curves say: whether the model learns its examples by heart, and what to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.core.recipe import Recipe

Records = Sequence[Mapping[str, Any]]

APART = 0.1
"""How far, as a share of the held-out loss, the training loss must lie below it to count."""

RISEN = 0.02
"""By what share the held-out loss must have risen from its lowest to count."""

STILL_FALLING = 0.02
"""By what share the held-out loss must have fallen between the last two evaluations to count."""

SCORED = ("classify", "tag", "answer", "prefer")
"""Tasks whose loss is of scores, not over the vocabulary: nothing of `regular` softens it but what evaluations tell, too."""


def unlike(recipe: Recipe) -> str:
    """Why the training loss is another measure than any that evaluations tell; empty where it is one of these."""
    if recipe.augment.mixup:
        return "of texts that are mixed (augment.mixup)"
    regular = recipe.regular
    softened = [key for key in ("label_smoothing", "z_loss") if getattr(regular, key)]
    return f"softened (regular.{softened[0]})" if softened and recipe.task not in SCORED else ""


@dataclass(frozen=True)
class Curves:
    """The mean training loss between two evaluations, and the held-out loss at the later one, by step.

    `unlike`: why the two can't be compared, if they can't.
    """

    steps: list[int]
    training: list[float]
    held_out: list[float]
    unlike: str = ""

    @classmethod
    def of(cls, training: Records, evaluations: Records, unlike: str = "") -> "Curves":
        """From a run's metrics; evaluations before which there was no step are left out.

        Held-out losses are by the measure that training minimises, where evaluations tell it beside the plain one.
        """
        steps, means, losses = [], [], []
        before = 0
        for record in evaluations:
            since = [line["loss"] for line in training if before < line["step"] <= record["step"]]
            if since:
                steps.append(record["step"])
                means.append(sum(since) / len(since))
                losses.append(record.get("eval_minimised_loss", record["eval_loss"]))
                before = record["step"]
        return cls(steps, means, losses, unlike)

    def verdict(self) -> str:
        """A sentence or two, for people; empty where there is nothing to compare."""
        if len(self.steps) < 2:
            return ""
        lowest = min(self.held_out)
        at = self.steps[self.held_out.index(lowest)]
        last, gap = self.held_out[-1], self.held_out[-1] - self.training[-1]
        risen = last > (1 + RISEN) * lowest
        apart = risen if self.unlike else gap > APART * last
        told = f"training loss {self.training[-1]:.3f}, held out {last:.3f}"
        if self.unlike:
            told = f"held-out loss {last:.3f}; the training loss is {self.unlike} and does not compare"
        if apart and risen:
            falling = "" if self.unlike else ", while the training loss went on falling"
            return (
                f"It overfits: the held-out loss was lowest at step {at:,} ({lowest:.3f}) and has risen since{falling} "
                f"({told}). Try fewer epochs, more dropout or weight decay, augmentation "
                "(--augment.share), or less of the model trained (--tuning.what lora, top or frozen); more examples help "
                "most."
            )
        if apart:
            return (
                f"It begins to overfit: the losses are apart ({told}), but the held-out loss has not risen. More epochs "
                "will hardly help; dropout, augmentation or more examples may."
            )
        if self.held_out[-2] - last > STILL_FALLING * last:
            return f"It does not overfit, and is still learning ({told}): try more epochs, or a higher learning rate."
        return f"It does not overfit ({told}): a larger model, more of it trained, or a higher learning rate may do better."
