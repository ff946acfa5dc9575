"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

Matrices of one shape are orthogonalised together as one batch. The Newton–Schulz iteration runs in bf16 on a GPU, where it
is fast, and in fp32 on a CPU, where bf16 products are some 70 times slower.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shoal.core import recipe
from shoal.train.optimizers.adamw import ALIKE

JORDAN = (3.4445, -4.7750, 2.0315)
"""Steep at zero and good enough near one: after five rounds singular values lie in about 0.7–1.2."""

MINIMAX = (
    (7.36252776, -20.74339565, 15.16055119),
    (2.91753804, -2.18240538, 0.47552922),
    (2.04631011, -1.42947500, 0.39335241),
)
"""Three rounds, each the odd quintic nearest to one in the largest error over what the round before leaves of [0.03, 1]
(after Polar Express, Amsel et al. 2025, arXiv:2505.16932): as good as five of Jordan's, for 60% of the work."""

ROUNDS = {3: MINIMAX, 5: (JORDAN,) * 5}


class Muon:
    """Nesterov momentum, orthogonalised, times √max(1, rows / columns) as in Jordan's reference.

    With `muon_row_decay`, each row is also divided by the running root mean square of its updates, the matrix's norm kept
    (NorMuon, Li et al. 2025, arXiv:2510.05491). `multiples`: of the learning rate, by parameter.
    """

    def __init__(
        self, named: dict[str, nn.Parameter], settings: recipe.Optimizer, multiples: Mapping[str, float] = ALIKE
    ) -> None:
        self.settings = settings
        self.groups: dict[torch.Size, dict[str, nn.Parameter]] = {}
        for name, parameter in named.items():
            self.groups.setdefault(parameter.shape, {})[name] = parameter
        # one stack a shape, so that a step is a few large operations instead of many small ones
        self.momentum = {shape: _stack_of_zeros(members, shape) for shape, members in self.groups.items()}
        self.rows = {shape: value[..., :1].clone() for shape, value in self.momentum.items()}
        self.multiples = {
            shape: [multiples.get(name, 1.0) for name in members] for shape, members in self.groups.items()
        }  # fmt: skip
        self.steps = 0

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step at `share` of the peak learning rate."""
        settings = self.settings
        rate, self.steps = settings.muon_learning_rate * share, self.steps + 1
        for shape, members in self.groups.items():
            parameters: list[Tensor] = list(members.values())
            gradient = torch.stack([_gradient(parameter) for parameter in parameters])
            momentum = self.momentum[shape].lerp_(gradient, 1 - settings.muon_momentum)
            update = orthogonalise(gradient.lerp_(momentum, settings.muon_momentum), settings.muon_iterations)
            if settings.muon_row_decay:
                update = self._even_rows(update, self.rows[shape])
            if settings.muon_weight_decay:
                decays = [1 - rate * multiple * settings.muon_weight_decay for multiple in self.multiples[shape]]
                torch._foreach_mul_(parameters, decays)
            scale = -rate * max(1.0, shape[0] / shape[1]) ** 0.5
            updates = list(update.unbind())
            torch._foreach_mul_(updates, self.multiples[shape])
            torch._foreach_add_(parameters, updates, alpha=scale)

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum of every matrix, and of its rows."""
        state = {"muon/steps": torch.tensor(self.steps)}
        for shape, members in self.groups.items():
            for index, name in enumerate(members):
                state[f"{name}/momentum"] = self.momentum[shape][index]
                state[f"{name}/rows"] = self.rows[shape][index]
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        self.steps = int(state["muon/steps"])
        for shape, members in self.groups.items():
            for index, name in enumerate(members):
                self.momentum[shape][index] = state[f"{name}/momentum"]
                self.rows[shape][index] = state[f"{name}/rows"]

    def _even_rows(self, update: Tensor, rows: Tensor) -> Tensor:
        decay = self.settings.muon_row_decay
        rows.lerp_(update.square().mean(2, keepdim=True), 1 - decay)
        before = update.norm(dim=(1, 2), keepdim=True)
        update = update / ((rows / (1 - decay**self.steps)).sqrt() + 1e-6)
        return update * (before / (update.norm(dim=(1, 2), keepdim=True) + 1e-12))


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: [batch, rows, columns] to the same, by Newton–Schulz.

    Singular values are first brought below one by the Schatten-4 norm, the root of the Gram matrix's norm: it is nearer to
    the largest singular value than the Frobenius norm, and the Gram matrix is needed anyway.
    """
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    gram = x @ x.mT
    bound = gram.norm(dim=(1, 2), keepdim=True) + 1e-20
    x, gram = x / bound.sqrt(), gram / bound
    for index, (a, b, c) in enumerate(ROUNDS[iterations]):
        if index:
            gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _stack_of_zeros(members: dict[str, nn.Parameter], shape: torch.Size) -> Tensor:
    return next(iter(members.values())).new_zeros((len(members), *shape))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
