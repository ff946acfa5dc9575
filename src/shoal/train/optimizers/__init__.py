"""Optimizers behind one small protocol, and how a recipe chooses among them.

The learning rate arrives with every step as a share of the peak, so that a schedule knows nothing of groups. State is a
flat dictionary of tensors by parameter name: it goes to disk without pickle and can be cut up by ranks.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from shoal.core import recipe
from shoal.parallel.matrices import Matrices, work
from shoal.parallel.mesh import Axis
from shoal.parallel.shards import Shards
from shoal.parallel.wire import Wire
from shoal.train.optimizers.adamw import ALIKE, AdamW, peak_rate
from shoal.train.optimizers.averaged import Averaged
from shoal.train.optimizers.delayed import Collected, DelayedNesterov
from shoal.train.optimizers.lookahead import Lookahead
from shoal.train.optimizers.muon import Muon
from shoal.train.optimizers.onebit_adam import OneBitAdam
from shoal.train.optimizers.penalised import Penalised

PLAIN = recipe.Regular()


class Optimizer(Protocol):
    """Changes parameters in place from their `.grad`."""

    def step(self, share: float) -> None:
        """One step at `share` of every peak learning rate."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All state, by `parameter name/kind`."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        ...


class Together:
    """Several optimizers that each have some of the parameters."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts

    def step(self, share: float) -> None:
        """Step all parts."""
        for part in self.parts:
            part.step(share)

    def state_dict(self) -> dict[str, Tensor]:
        """The parts' states; parameter names keep them apart."""
        return {name: value for part in self.parts for name, value in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Each part takes what is its own."""
        for part in self.parts:
            part.load_state_dict(state)


def build_optimizer(
    shards: Shards,
    settings: recipe.Optimizer,
    regular: recipe.Regular = PLAIN,
    multiples: Mapping[str, float] = ALIKE,
    meeting: tuple[Wire, Axis] | None = None,
    precision: str = "fp32",
) -> Optimizer:
    """The recipe's optimizer over this rank's parts of all parameters, with what pulls at and averages them.

    `multiples`: of the settings' learning rates, by parameter. `meeting`: how the ranks that hold a copy of the model among
    them reach each other, where it is divided. `precision`: the recipe's, of matrix products.
    """
    named = {name: shard.value for name, shard in shards.items()}
    matrices = {name for name, shard in shards.items() if len(shard.shape) == 2}
    peaks = {name: peak_rate(name, settings) * multiples.get(name, 1.0) for name in matrices}
    optimizer: Optimizer
    if settings.kind == "muon":
        whole = {name: shard for name, shard in shards.items() if _orthogonalised(name, shard.shape)}
        rest = {name: value for name, value in named.items() if name not in whole}
        peaks |= {name: settings.muon_learning_rate * multiples.get(name, 1.0) for name in whole}
        divided = Matrices(*meeting, whole) if meeting is not None and meeting[1].size > 1 else None
        # a parameter server may have none of one kind
        parts: list[Optimizer] = [Muon(whole, settings, multiples, divided, precision == "bf16")] if whole else []
        optimizer = Together([*parts, AdamW(rest, settings, matrices, multiples)] if rest else parts)
    elif settings.kind == "onebit_adam":
        optimizer = OneBitAdam(named, settings, matrices, multiples)
    else:
        optimizer = AdamW(named, settings, matrices, multiples)
    if regular.l1 or regular.l2:
        optimizer = Penalised(optimizer, named, peaks, regular)
    if settings.lookahead.every:
        optimizer = Lookahead(optimizer, named, settings.lookahead)
    return Averaged(optimizer, named, regular.ema) if regular.ema else optimizer


def update_work(settings: recipe.Optimizer) -> Callable[[str, torch.Size], int]:
    """What a step does for a parameter of a name and shape, about, in passes over its elements: to share it out by."""

    def estimate(name: str, shape: torch.Size) -> int:
        orthogonalised = settings.kind == "muon" and _orthogonalised(name, shape)
        return shape.numel() + (work(shape) // 2 if orthogonalised else 0)

    return estimate


def _orthogonalised(name: str, shape: torch.Size) -> bool:
    """Whether it is one of the matrices that Muon is for."""
    return len(shape) == 2 and name.startswith("blocks.")


def build_delayed_optimizer(
    each: int, settings: recipe.Optimizer, shards: Shards, multiples: Mapping[str, float] = ALIKE
) -> Optimizer:
    """The recipe's optimizer for gradients of one worker at a time, `each` of which make a step."""
    named = {name: shard.value for name, shard in shards.items()}
    if settings.kind == "adamw" and not settings.lookahead.every:
        matrices = {name for name, shard in shards.items() if len(shard.shape) == 2}
        return DelayedNesterov(named, settings, matrices, each, multiples)
    return Collected(build_optimizer(shards, settings, multiples=multiples), named, each)
