"""Optimizers for gradients that come one worker at a time, computed on parameters that others have changed meanwhile.

`each` pushes of a share of the batch make one step, so learning rate and schedule mean what they mean when workers meet.
Momentum is the trouble: brought up to date by every push, it carries stale gradients on and on, and adds up what
workers found at one and the same point (Liu et al. 2024, arXiv:2401.09135). Their delayed Nesterov applies each gradient
g as it comes, as g / N, and the momentum only every N pushes, with the mean of all N (their c = 0).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shoal.core import recipe
from shoal.train.optimizers.adamw import ALIKE, AdamW

if TYPE_CHECKING:
    from shoal.train.optimizers import Optimizer


class DelayedNesterov:
    """Delayed Nesterov under AdamW's denominators. Over one cycle of N pushes g_i with mean ḡ, step t makes

        θ ← θ − η (1 − β₁)/(1 − β₁ᵗ) Σᵢ g_i / (N √v̂ᵢ)  − η β₁/(1 − β₁ᵗ⁺¹) m_t / √v̂,   m_t = β₁ m_{t−1} + (1 − β₁) ḡ

    which is Adam with Nesterov's momentum (Dozat 2016) when the g_i are equal. v̂ᵢ is what v̂ would be, had the cycle's mean
    so far been all of it, or g_i / N where that is larger: a value whose first gradient comes in mid-cycle, or whose
    gradients cancel each other in the mean, is then bounded, as in Adam. The decoupled decay is taken in N parts.
    """

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        settings: recipe.Optimizer,
        matrices: set[str],
        each: int,
        multiples: Mapping[str, float] = ALIKE,
    ) -> None:
        self.named, self.settings, self.each = named, settings, each
        self.pushes = 0
        self.steps = 0
        # the rates and decays are AdamW's
        groups = AdamW(named, settings, matrices, multiples).inner.param_groups
        self.groups = [(list[nn.Parameter](group["params"]), group["lr"], group["weight_decay"]) for group in groups]
        self.momentum, self.squares, self.collected = (
            {parameter: torch.zeros_like(parameter) for parameter in named.values()} for _ in range(3)
        )

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One push, at `share` of the peak learning rates."""
        settings, step = self.settings, self.steps + 1
        self.pushes += 1
        last = self.pushes % self.each == 0
        part = (self.pushes - 1) % self.each + 1
        fresh = (1 - settings.beta1) / (1 - settings.beta1**step) / self.each
        carried = settings.beta1 / (1 - settings.beta1 ** (step + 1))
        for parameters, peak, decay in self.groups:
            rate = peak * share
            for parameter in parameters:
                assert parameter.grad is not None
                collected, squares = self.collected[parameter], self.squares[parameter]
                collected.add_(parameter.grad, alpha=1 / self.each)
                size = torch.maximum((collected * (self.each / part)).abs_(), parameter.grad.abs() / self.each)
                seen = torch.addcmul(squares * settings.beta2, size, size, value=1 - settings.beta2)
                scale = (seen / (1 - settings.beta2**step)).sqrt_().add_(settings.epsilon)
                parameter.mul_(1 - rate * decay / self.each)
                parameter.addcdiv_(parameter.grad, scale, value=-rate * fresh)
                if last:
                    momentum = self.momentum[parameter].lerp_(collected, 1 - settings.beta1)
                    parameter.addcdiv_(momentum, scale, value=-rate * carried)
                    squares.copy_(seen)
                    collected.zero_()
        if last:
            self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Both moments, under AdamW's names, and what the cycle has collected."""
        state = {"delayed/pushes": torch.tensor(self.pushes)}
        for name, parameter in self.named.items():
            state[f"{name}/step"] = torch.tensor(float(self.steps))
            state[f"{name}/exp_avg"] = self.momentum[parameter]
            state[f"{name}/exp_avg_sq"] = self.squares[parameter]
            state[f"{name}/collected"] = self.collected[parameter]
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave, or AdamW's."""
        for name, parameter in self.named.items():
            self.steps = int(state[f"{name}/step"])
            self.momentum[parameter].copy_(state[f"{name}/exp_avg"])
            self.squares[parameter].copy_(state[f"{name}/exp_avg_sq"])
            if f"{name}/collected" in state:
                self.collected[parameter].copy_(state[f"{name}/collected"])
        # a cycle of another length is a step of its own: what it has collected stays, and it begins anew
        pushes = int(state["delayed/pushes"]) if "delayed/pushes" in state else 0
        self.pushes = pushes if pushes // self.each == self.steps else self.steps * self.each


class Collected:
    """Any optimizer, stepped once for `each` pushes, by their mean (buffered asynchronous aggregation, Nguyen et al. 2022,
    arXiv:2106.06639): for those that can't take a gradient in parts, such as Muon, which makes matrices orthogonal.
    """

    def __init__(self, inner: "Optimizer", named: dict[str, nn.Parameter], each: int) -> None:
        self.inner, self.named, self.each = inner, named, each
        self.pushes = 0
        self.collected = {name: torch.zeros_like(parameter) for name, parameter in named.items()}

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One push; the last of a cycle steps the optimizer, at its `share` of the peak learning rates."""
        self.pushes += 1
        for name, parameter in self.named.items():
            assert parameter.grad is not None
            self.collected[name].add_(parameter.grad, alpha=1 / self.each)
        if self.pushes % self.each:
            return
        for name, parameter in self.named.items():
            assert parameter.grad is not None
            parameter.grad.copy_(self.collected[name])
            self.collected[name].zero_()
        self.inner.step(share)

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's state, and what the cycle has collected."""
        collected = {f"{name}/collected": value for name, value in self.collected.items()}
        return self.inner.state_dict() | collected | {"delayed/pushes": torch.tensor(self.pushes % self.each)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave, or the optimizer's own."""
        self.inner.load_state_dict(state)
        self.pushes = int(state["delayed/pushes"]) % self.each if "delayed/pushes" in state else 0
        for name, value in self.collected.items():
            if f"{name}/collected" in state:
                value.copy_(state[f"{name}/collected"])
