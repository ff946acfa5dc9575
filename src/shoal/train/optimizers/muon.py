"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

Matrices of one shape are orthogonalised together as one batch. The Newton–Schulz iteration runs in bf16 on a GPU, where it
is fast, and in fp32 on a CPU, where bf16 products are some 70 times slower.
"""

import torch
from torch import Tensor, nn

from shoal.core import recipe

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: steep at zero, and good enough near one (the singular values end in about 0.7–1.2)."""


class Muon:
    """Nesterov momentum, orthogonalised, times √max(1, rows / columns) as in Jordan's reference."""

    def __init__(self, named: dict[str, nn.Parameter], settings: recipe.Optimizer) -> None:
        self.settings = settings
        self.momentum = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        self.groups: dict[torch.Size, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in named.items():
            self.groups.setdefault(parameter.shape, []).append((name, parameter))

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step at `share` of the peak learning rate."""
        beta, rate = self.settings.muon_momentum, self.settings.muon_learning_rate * share
        for shape, members in self.groups.items():
            updates = []
            for name, parameter in members:
                assert parameter.grad is not None
                momentum = self.momentum[name].lerp_(parameter.grad, 1 - beta)
                updates.append(parameter.grad.lerp(momentum, beta))
            orthogonal = orthogonalise(torch.stack(updates), self.settings.muon_iterations)
            scale = -rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for (_, parameter), update in zip(members, orthogonal, strict=True):
                if self.settings.muon_weight_decay:
                    parameter.mul_(1 - rate * self.settings.muon_weight_decay)
                parameter.add_(update, alpha=scale)

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum of every matrix."""
        return {f"{name}/momentum": value for name, value in self.momentum.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        for name, value in self.momentum.items():
            value.copy_(state[f"{name}/momentum"])


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: [batch, rows, columns] to the same, by Newton–Schulz."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
