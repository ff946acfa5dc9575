"""The seam between training and communication: two fixed points around `optimizer.step()`.

An all-reduce averages in `before_step`; sharding gathers in `after_step`; local updates do nothing before and meet every
H steps after. The loop calls the points and never asks which strategy it has.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shoal.parallel.mesh import Axis, Mesh
from shoal.parallel.shards import Shards, squared_norm
from shoal.parallel.wire import Wire


class Sync(Protocol):
    """How gradients (or parameters) of the ranks meet. Strategies take what has a body here unless they know better."""

    wire: Wire
    mesh: Mesh
    shards: Shards
    """What this rank updates, once attached."""

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Divide what is to be divided of `shards`, which are equal on all ranks, and watch the model's gradients."""
        ...

    def begin_backward(self, last: bool) -> None:
        """A backward pass follows; after the `last` of a step, gradients may travel."""
        ...

    def before_step(self) -> None:
        """Every `.grad` of this rank's shards is the sum over all ranks when this returns."""
        ...

    def sum_totals(self, totals: Tensor) -> Tensor:
        """[micro-batches of this rank, n] to their sums [n] over micro-batches and ranks, in one small message.

        A strategy whose ranks don't meet in this step estimates the first two, loss and targets, as its own times as many
        as there are, and leaves the others zero.
        """
        return self.wire.sum(totals.sum(0), self.mesh.together)

    def grad_norm(self) -> Tensor:
        """Euclidean norm of the whole model's gradients as they are now, a scalar, the same on all ranks that meet."""
        return global_norm(self.wire, self.mesh, self.shards)

    def scale_grads(self, factor: float) -> None:
        """Multiply all gradients."""
        ...

    def after_step(self) -> None:
        """The optimizer has stepped; clear the gradients, and let parameters meet where that is due."""
        ...

    def from_main(self, purpose: str, value: Any) -> Any:
        """Rank 0's `value`, for all that meet; None where it can't be had. `purpose` tells two of a step apart."""
        return self.wire.gather_objects(value)[0]

    def settle(self) -> None:
        """Training is over: let what is under way arrive; all ranks then have the same weights."""
        return

    def common_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that all ranks share, where theirs differ."""
        return nullcontext()

    def whole_weights(self) -> AbstractContextManager[None]:
        """Inside, each rank has all of the model's weights, and may compute by itself, as often as it likes."""
        return nullcontext()

    def changing_weights(self) -> AbstractContextManager[None]:
        """Inside, the weights of this rank's shards are changed by others than the optimizer, on all ranks.

        No rank computes with them meanwhile, and afterwards all compute with the new ones.
        """
        return nullcontext()

    @property
    def apart(self) -> Axis:
        """The ranks whose weights and optimizer states differ; each saves its own."""
        return Axis()

    def state_dict(self) -> dict[str, Tensor]:
        """What all ranks share and must be kept to go on bitwise, by `parameter name/kind`, divided as the weights are."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        return

    def own_state(self) -> dict[str, Tensor]:
        """What this rank alone knows and must be kept."""
        return {}

    def load_own_state(self, states: list[Mapping[str, Tensor]]) -> None:
        """Take up `own_state` of one rank; of several where fewer ranks go on, and of none where more do."""
        return


def global_norm(wire: Wire, mesh: Mesh, shards: Shards) -> Tensor:
    """The norm of all gradients, of which each rank along the shard and tensor axes holds some."""
    total = squared_norm(shards)
    for axis in (mesh.shard, mesh.tensor):
        wire.sum(total, axis)
    return torch.sqrt(total)
