"""L1 and L2 on the weights, around any optimizer.

Decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101), the default, both act on the weights beside the optimizer's
step, at the weight's own learning rate η: L2 as w ← (1 − η λ₂) w before it, which is what `optimizer.weight_decay` does, L1
after it as the proximal step w ← sign(w) max(|w| − η λ₁, 0) (Parikh and Boyd 2014, Proximal Algorithms, section 6.5.2). That
sets small weights to exactly zero, which a step along the subgradient never does: it jumps over zero and back.

Not decoupled, λ₂ w + λ₁ sign(w), of L1 a subgradient, is added to the gradient before any moments see it: what "L2" meant
before AdamW. Adaptive optimizers then divide the pull on a weight by the size of its gradients.

Either way it happens once, on this rank's own parts, after gradients have met and have been averaged and clipped: no norm,
no codec and no error feedback ever sees it, and it is not part of the reported loss.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shoal.core import recipe

if TYPE_CHECKING:
    from shoal.train.optimizers import Optimizer


class Penalised:
    """Pulls matrices towards zero: `peaks` has them by name, each with its peak learning rate."""

    def __init__(
        self,
        inner: "Optimizer",
        named: Mapping[str, nn.Parameter],
        peaks: Mapping[str, float],
        settings: recipe.Regular,
    ) -> None:
        self.inner, self.settings = inner, settings
        self.pulled = [(named[name], peak) for name, peak in peaks.items() if named[name].numel()]

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Step the inner optimizer, and pull."""
        if not self.settings.decoupled:
            self._add_to_gradients()
            self.inner.step(share)
            return
        for value, peak in self.pulled:
            value.mul_(1 - peak * share * self.settings.l2)
        self.inner.step(share)
        for value, peak in self.pulled if self.settings.l1 else ():
            value.copy_(nn.functional.softshrink(value, peak * share * self.settings.l1))

    def state_dict(self) -> dict[str, Tensor]:
        """The inner optimizer's."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inner optimizer's."""
        self.inner.load_state_dict(state)

    def _add_to_gradients(self) -> None:
        for value, _ in self.pulled:
            assert value.grad is not None
            value.grad.add_(value, alpha=self.settings.l2)
            if self.settings.l1:
                value.grad.add_(value.sign(), alpha=self.settings.l1)
