"""AdamW whose variance is frozen after a warm-up (Tang et al. 2021, arXiv:2102.02888), and which then gets the momentum.

What `.grad` is after the warm-up, the sum of encoded momenta, is made where gradients meet (`parallel.momentum`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shoal.core import recipe
from shoal.train.optimizers.adamw import ALIKE, AdamW


class OneBitAdam:
    """`settings.onebit_warmup` steps of AdamW, then of its frozen form: both count the steps that are taken."""

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        settings: recipe.Optimizer,
        matrices: set[str],
        multiples: Mapping[str, float] = ALIKE,
    ) -> None:
        self.adamw, self.settings = AdamW(named, settings, matrices, multiples), settings
        self.taken = 0

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step at `share` of the peak learning rates."""
        self.taken += 1
        if self.taken <= self.settings.onebit_warmup:
            self.adamw.step(share)
            return
        state = self.adamw.inner.state
        for group, peak in zip(self.adamw.inner.param_groups, self.adamw.peaks, strict=True):
            parameters: list[Tensor] = group["params"]
            for parameter in parameters:
                state[parameter]["step"] += 1
            # what the momentum, and at the end of the warm-up the variance, lacked of weights that sum to one
            first = 1 - self.settings.beta1**self.taken
            second = 1 - self.settings.beta2**self.settings.onebit_warmup
            spreads = torch._foreach_sqrt([state[parameter]["exp_avg_sq"] for parameter in parameters])
            torch._foreach_div_(spreads, second**0.5)
            torch._foreach_add_(spreads, self.settings.epsilon)
            momenta = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(parameters, 1 - peak * share * group["weight_decay"])
            torch._foreach_addcdiv_(parameters, momenta, spreads, -peak * share / first)

    def state_dict(self) -> dict[str, Tensor]:
        """AdamW's; its first moment is that of the end of the warm-up."""
        return self.adamw.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        self.adamw.load_state_dict(state)
        self.taken = max((int(value) for key, value in state.items() if key.endswith("/step")), default=0)
