"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

Matrices of one shape are orthogonalised together as one batch. Where a recipe trains in bf16, the Newton–Schulz iteration
does, too, on a GPU; not on a CPU, where bf16 products are some 70 times slower.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.core import recipe
from shoal.parallel.matrices import Matrices
from shoal.parallel.shards import Shards
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
    (NorMuon, Li et al. 2025, arXiv:2510.05491). `multiples`: of the learning rate, by parameter. `matrices`: where ranks
    hold parts only; momentum is then divided as they are, and a matrix is one rank's to make orthogonal, with its rows.
    `half`: a GPU may iterate in bf16.
    """

    def __init__(
        self,
        shards: Shards,
        settings: recipe.Optimizer,
        multiples: Mapping[str, float] = ALIKE,
        matrices: Matrices | None = None,
        half: bool = False,
    ) -> None:
        self.settings, self.matrices, self.half = settings, matrices, half
        self.parameters = {name: shard.value for name, shard in shards.items()}
        self.multiples = [multiples.get(name, 1.0) for name in shards]
        self.scales = {name: max(1.0, shard.shape[0] / shard.shape[1]) ** 0.5 for name, shard in shards.items()}
        self.momentum = {name: torch.zeros_like(value.data) for name, value in self.parameters.items()}
        self.groups: dict[torch.Size, list[str]] = {}
        for name in shards if matrices is None else matrices.mine:
            self.groups.setdefault(shards[name].shape, []).append(name)
        # one stack a shape, so that a step is a few large operations instead of many small ones
        kind = next(iter(self.momentum.values()))
        self.rows = {shape: kind.new_zeros(len(names), shape[0], 1) for shape, names in self.groups.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step at `share` of the peak learning rate; gradients are changed."""
        settings = self.settings
        rate, self.steps = settings.muon_learning_rate * share, self.steps + 1
        parameters: list[Tensor] = [*self.parameters.values()]
        momenta = [*self.momentum.values()]
        directions = [_gradient(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, directions, 1 - settings.muon_momentum)
        torch._foreach_lerp_(directions, momenta, settings.muon_momentum)
        updates = self._orthogonal(dict(zip(self.parameters, directions, strict=True)))
        rates = [rate * multiple for multiple in self.multiples]
        if settings.muon_weight_decay:
            torch._foreach_mul_(parameters, [1 - its * settings.muon_weight_decay for its in rates])
        torch._foreach_mul_(updates, [-its * scale for its, scale in zip(rates, self.scales.values(), strict=True)])
        torch._foreach_add_(parameters, updates)

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum of what this rank holds, and that of the rows of the matrices that it makes orthogonal."""
        state = {"muon/steps": torch.tensor(self.steps)}
        state |= {f"{name}/momentum": value for name, value in self.momentum.items()}
        for shape, names in self.groups.items():
            state |= {f"{name}/rows": rows for name, rows in zip(names, self.rows[shape], strict=True)}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        self.steps = int(state["muon/steps"])
        for name, value in self.momentum.items():
            value.copy_(state[f"{name}/momentum"])
        for shape, names in self.groups.items():
            for rows, name in zip(self.rows[shape], names, strict=True):
                rows.copy_(state[f"{name}/rows"])

    def _orthogonal(self, directions: dict[str, Tensor]) -> list[Tensor]:
        """What becomes of all matrices, or of this rank's parts of them."""
        wholes = directions if self.matrices is None else self.matrices.collect(directions)
        found: dict[str, Tensor] = {}
        for shape, names in self.groups.items():
            stacked = torch.stack([wholes[name] for name in names])
            update = orthogonalise(stacked, self.settings.muon_iterations, self.half)
            if self.settings.muon_row_decay:
                update = self._even_rows(update, self.rows[shape])
            found |= zip(names, update, strict=True)
        if self.matrices is not None:
            found = self.matrices.give_back(found, next(iter(directions.values())))
        return [found[name] for name in directions]

    def _even_rows(self, update: Tensor, rows: Tensor) -> Tensor:
        decay = self.settings.muon_row_decay
        rows.lerp_(update.square().mean(2, keepdim=True), 1 - decay)
        before = update.norm(dim=(1, 2), keepdim=True)
        update = update / ((rows / (1 - decay**self.steps)).sqrt() + 1e-6)
        return update * (before / (update.norm(dim=(1, 2), keepdim=True) + 1e-12))


def orthogonalise(matrices: Tensor, iterations: int = 5, half: bool = False) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: [batch, rows, columns] to the same, by Newton–Schulz.

    Singular values are first brought below one by the Schatten-4 norm, the root of the Gram matrix's norm: it is nearer to
    the largest singular value than the Frobenius norm, and the Gram matrix is needed anyway. `half`: in bf16 on a GPU.
    """
    x = matrices.bfloat16() if half and matrices.device.type == "cuda" else matrices
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


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
