"""Lookahead: slow weights that follow the fast ones (Zhang et al. 2019, arXiv:1907.08610), around any optimizer."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shoal.core import recipe

if TYPE_CHECKING:
    from shoal.train.optimizers import Optimizer


class Lookahead:
    """Every so many steps, slow += pull × (fast − slow), and the fast weights go on from there."""

    def __init__(self, inner: "Optimizer", named: dict[str, nn.Parameter], settings: recipe.Lookahead) -> None:
        self.inner, self.named, self.settings = inner, named, settings
        self.slow: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Step the inner optimizer, and pull when it is due."""
        if not self.slow:
            self.slow = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self.inner.step(share)
        self.steps += 1
        if self.steps % self.settings.every == 0:
            for name, parameter in self.named.items():
                parameter.copy_(self.slow[name].lerp_(parameter, self.settings.pull))

    def state_dict(self) -> dict[str, Tensor]:
        """The slow weights, the number of steps, and the inner optimizer's state."""
        slow = {f"{name}/slow": value for name, value in self.slow.items()}
        return self.inner.state_dict() | slow | {"lookahead/steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        self.inner.load_state_dict(state)
        self.steps = int(state["lookahead/steps"])
        device = next(iter(self.named.values())).device
        self.slow = {name: state[f"{name}/slow"].to(device) for name in self.named if f"{name}/slow" in state}
