"""1-bit Adam (Tang et al. 2021, arXiv:2102.02888): after a warm-up it is the momentum that travels, in as little as a bit.

Adam can't be fed with one-bit gradients, as its variance would be that of the code. But the variance settles early. So for
some steps everything is plain; then the variance is frozen, and what a rank encodes, with error feedback, is how the common
momentum would look with its gradients alone: β₁ M / N + (1 − β₁) g. The sum over N ranks is the next common momentum M.

Gradients are sums over targets, and so is M: the loop divides what the optimizer gets, and clips it, which after the warm-up
is the momentum instead of the gradient (`train.optimizers.onebit_adam`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.parallel.feedback import Place, find_gaps


class Momentum:
    """The common momentum, as fresh as the last step that was taken; it travels after `warmup` of these."""

    def __init__(self, share: float, warmup: int, ranks: int) -> None:
        self.share, self.warmup, self.ranks = share, warmup, ranks
        self.taken = 0
        self.places: Sequence[Place] = []
        self.flat = torch.empty(0)
        self.gaps: list[slice] = []

    def lie_as(self, places: Sequence[Place], gradients: Tensor) -> None:
        """Begin with zeros, laid out as the gradients are."""
        self.places, self.flat = places, torch.zeros_like(gradients)
        self.gaps = find_gaps(places, len(gradients))

    @property
    def travels(self) -> bool:
        """Whether this step's messages are momenta."""
        return self.taken >= self.warmup

    def enter(self, gradients: Tensor, start: int, end: int) -> None:
        """Turn this rank's gradients [start, end) into its share of the next momentum, in place."""
        gradients.mul_(1 - self.share).add_(self.flat[start:end], alpha=self.share / self.ranks)

    def keep(self, summed: Tensor) -> None:
        """A step is taken with these sums, of gradients or momenta."""
        if self.travels:
            self.flat.copy_(summed)
            for gap in self.gaps:  # some codecs make something of nothing
                self.flat[gap].zero_()
        else:
            self.flat.mul_(self.share).add_(summed, alpha=1 - self.share)
        self.taken += 1

    def state_dict(self) -> dict[str, Tensor]:
        """By `parameter name/momentum`, and how many steps were taken."""
        momenta = {f"{place.name}/momentum": place.view(self.flat) for place in self.places}
        return {**momenta, "onebit/taken": torch.tensor(self.taken)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there; a run that had none begins with its warm-up."""
        self.taken = int(state.get("onebit/taken", 0))
        for place in self.places:
            place.view(self.flat).copy_(state.get(f"{place.name}/momentum", torch.zeros(())))
