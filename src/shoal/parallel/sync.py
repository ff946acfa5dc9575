"""The seam between training and communication: two fixed points around `optimizer.step()`.

An all-reduce averages in `before_step`; sharding gathers in `after_step`; local updates do nothing before and meet every
H steps after. The loop calls the points and never asks which strategy it has.
"""

from typing import Protocol

from torch import Tensor, nn

from shoal.parallel.wire import Wire


class Sync(Protocol):
    """How gradients (or parameters) of the ranks meet."""

    wire: Wire

    def attach(self, model: nn.Module) -> None:
        """Make all ranks' parameters equal rank 0's, and watch the model's gradients."""
        ...

    def begin_backward(self, last: bool) -> None:
        """A backward pass follows; after the `last` of a step, gradients may travel."""
        ...

    def before_step(self) -> None:
        """Every `.grad` is the sum over all ranks when this returns."""
        ...

    def sum_totals(self, totals: Tensor) -> Tensor:
        """[micro-batches of this rank, n] to their sums [n] over micro-batches and ranks."""
        ...

    def grad_norm(self) -> Tensor:
        """Euclidean norm of all gradients as they are now, a scalar."""
        ...

    def scale_grads(self, factor: float) -> None:
        """Multiply all gradients."""
        ...

    def after_step(self) -> None:
        """The optimizer has stepped; clear the gradients, and let parameters meet where that is due."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What must be kept to go on bitwise."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        ...
