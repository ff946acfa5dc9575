"""An exponential moving average of the weights beside the weights, around any optimizer.

a ← d a + (1 − d) w after every step that was taken, with d = min(decay, (1 + t) / (10 + t)) in the t-th: the beginning, when
weights are far from good, is forgotten quickly. (Averaging iterates: Polyak and Juditsky 1992; the warm-up is that of
TensorFlow's `ExponentialMovingAverage`.) It costs 4 bytes a weight and one pass over them a step.

It is one more piece of optimizer state: divided as the weights are, and saved and read with the rest. Where copies of the
model step apart, each averages its own, and the mean of these is the average of their mean.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from shoal.train.optimizers import Optimizer

AVERAGE = "ema"
"""The kind of a parameter's average, in `parameter name/kind`."""


class Averaged:
    """Keeps the moving average of `named`."""

    def __init__(self, inner: "Optimizer", named: dict[str, nn.Parameter], decay: float) -> None:
        self.inner, self.named, self.decay = inner, named, decay
        self.averages: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Step the inner optimizer, and let the average follow."""
        if not self.averages:
            self._begin()
        self.inner.step(share)
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.averages.values()), [self.named[name] for name in self.averages], weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, how many steps they are of, and the inner optimizer's state."""
        averages = {f"{name}/{AVERAGE}": value for name, value in self.averages.items()}
        return self.inner.state_dict() | averages | {f"average/{AVERAGE}": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave; from a run that had no average, begin one."""
        self.inner.load_state_dict(state)
        self.averages, self.steps = {}, int(state.get(f"average/{AVERAGE}", 0))
        for name, parameter in self.named.items() if self.steps else ():
            self.averages[name] = state[f"{name}/{AVERAGE}"].to(parameter.device)

    def _begin(self) -> None:
        self.averages = {name: parameter.detach().clone() for name, parameter in self.named.items()}
