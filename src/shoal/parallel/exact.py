"""Gradients summed in one fixed tree, so that the number of ranks changes no bit.

Floating-point sums depend on their order, hence an ordinary run on two ranks drifts away from the same run on one. Here a
step is always cut into the same virtual shards, one micro-batch each, and these are summed pairwise: neighbours first, then
neighbours of these sums. A rank holds a whole branch of that tree. It merges its own micro-batches as a binary counter
carries: a sum waits in a stash until its neighbour is there. Between ranks the tree goes on by recursive doubling: at level
k, partners `rank ^ 2^k` exchange their sums and both add, and a + b is b + a in floating point, so both hold the same bits.

The price: nothing travels while backward runs; log2(ranks) whole buffers are sent where a ring sends less than two; and
log2(micro-batches of a rank) − 1 buffers, or one with several ranks, wait or receive beside the gradients. A pair of
micro-batches costs nothing: autograd adds the second to the first where it lies. GPUs are refused, as some of their kernels
add in whatever order threads arrive.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from shoal.core.errors import InputError
from shoal.parallel.mesh import Mesh
from shoal.parallel.shards import Shards
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire


class ExactSum(Sync):
    """Sums gradients of `virtual_shards` equal micro-batches over all ranks, in the same order on any number of them.

    Ranks, and micro-batches of a rank, must be powers of two, and rank r have the r-th contiguous block of them. Products
    may depend on how many `threads` divide them, so their number is a part of the result.
    """

    def __init__(self, wire: Wire, mesh: Mesh, virtual_shards: int, threads: int = 1) -> None:
        if wire.world.device.type != "cpu":
            raise InputError(
                "parallel.exact is for CPUs: a GPU's kernels don't always add in one order; set train.device cpu"
            )
        self.wire, self.mesh = wire, mesh
        self.virtual_shards, self.threads = virtual_shards, threads
        self._parameters: list[nn.Parameter] = []
        self._flat = torch.empty(0)
        self._stash: list[Tensor] = []
        self._spare: list[Tensor] = []
        self._begun = 0

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Set the number of threads, and lay the gradients out."""
        torch.set_num_threads(self.threads)
        is_main = self.wire.world.is_main
        self.shards = {name: replace(shard, first=is_main) for name, shard in shards.items()}
        self._parameters = [shard.value for shard in shards.values()]
        self._flat = torch.zeros(sum(parameter.numel() for parameter in self._parameters))
        self._lay_out()

    def begin_backward(self, last: bool) -> None:
        """The next micro-batch follows; a pair that is complete is put aside first."""
        if self._begun and self._begun % 2 == 0:
            self._carry()
            self._stash.append(self._flat)
            self._flat = self._take_spare().zero_()
            self._lay_out()
        self._begun += 1

    def before_step(self) -> None:
        """Merge what waits on this rank, then with the other ranks."""
        self._carry()
        if self.wire.world.size > 1:
            received = self._take_spare()
            self._add_partners(self._flat, received)
            self._spare.append(received)
        self._begun = 0

    def sum_totals(self, totals: Tensor) -> Tensor:
        """[micro-batches, n] to their sums [n] over micro-batches and ranks, by the gradients' tree."""
        while len(totals) > 1:
            totals = totals[0::2] + totals[1::2]
        total = totals[0].clone()
        self._add_partners(total, torch.empty_like(total))
        return total

    def grad_norm(self) -> Tensor:
        """Euclidean norm over the flat buffer; equal on all ranks."""
        return torch.linalg.vector_norm(self._flat)

    def scale_grads(self, factor: float) -> None:
        """Multiply the flat buffer."""
        self._flat.mul_(factor)

    def after_step(self) -> None:
        """Clear the gradients for the next step."""
        self._flat.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """What the bits depend on beside the recipe's training: nothing else outlives a step."""
        return {"virtual_shards": torch.tensor(self.virtual_shards), "threads": torch.tensor(self.threads)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises `InputError` when the run would go on with other bits than it would have had."""
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise InputError(
                "the checkpoint is of a run that was not exact from its beginning: "
                "go on without parallel.exact, or start anew"
            )
        if state != mine:
            then, now = (", ".join(f"{name} {int(value)}" for name, value in side.items()) for side in (state, mine))
            raise InputError(
                f"the checkpoint was made with {then}; this run has {now}, and would end with other bits: "
                "set parallel.virtual_shards and parallel.threads as they were"
            )

    def _carry(self) -> None:
        """Merge the newest sum with those that wait for it: as many as a counter of pairs has trailing zeros."""
        sums = (self._begun + 1) // 2
        while sums % 2 == 0:
            waiting = self._stash.pop()
            self._flat.add_(waiting)
            self._spare.append(waiting)
            sums //= 2

    def _add_partners(self, values: Tensor, received: Tensor) -> None:
        distance = 1
        while distance < self.wire.world.size:
            self.wire.exchange(values, received, self.wire.world.rank ^ distance)
            values.add_(received)
            distance *= 2

    def _take_spare(self) -> Tensor:
        return self._spare.pop() if self._spare else torch.empty_like(self._flat)

    def _lay_out(self) -> None:
        """Let every gradient be a view into the flat buffer."""
        pieces = self._flat.split([parameter.numel() for parameter in self._parameters])
        for parameter, piece in zip(self._parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
