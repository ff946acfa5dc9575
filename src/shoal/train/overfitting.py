"""What a run's two learning curves say: whether the model learns its examples by heart, and what to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Records = Sequence[Mapping[str, Any]]

APART = 0.1
"""How far, as a share of the held-out loss, the training loss must lie below it to count."""

RISEN = 0.02
"""By what share the held-out loss must have risen from its lowest to count."""

STILL_FALLING = 0.02
"""By what share the held-out loss must have fallen between the last two evaluations to count."""


@dataclass(frozen=True)
class Curves:
    """The mean training loss between two evaluations, and the held-out loss at the later one, by step."""

    steps: list[int]
    training: list[float]
    held_out: list[float]

    @classmethod
    def of(cls, training: Records, evaluations: Records) -> "Curves":
        """From a run's metrics; evaluations before which there was no step are left out."""
        steps, means, losses = [], [], []
        before = 0
        for record in evaluations:
            since = [line["loss"] for line in training if before < line["step"] <= record["step"]]
            if since:
                steps.append(record["step"])
                means.append(sum(since) / len(since))
                losses.append(record["eval_loss"])
                before = record["step"]
        return cls(steps, means, losses)

    def verdict(self) -> str:
        """A sentence or two, for people; empty where there is nothing to compare."""
        if len(self.steps) < 2:
            return ""
        lowest = min(self.held_out)
        at = self.steps[self.held_out.index(lowest)]
        last, gap = self.held_out[-1], self.held_out[-1] - self.training[-1]
        apart, risen = gap > APART * last, last > (1 + RISEN) * lowest
        told = f"training loss {self.training[-1]:.3f}, held out {last:.3f}"
        if apart and risen:
            return (
                f"It overfits: the held-out loss was lowest at step {at:,} ({lowest:.3f}) and has risen since, while the "
                f"training loss went on falling ({told}). Try fewer epochs, more dropout or weight decay, augmentation "
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
