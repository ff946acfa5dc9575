"""Plain synchronous data parallelism: gradients are summed over all ranks every step, while backward still runs.

All gradients are views into one flat buffer, cut into buckets in the order in which backward fills them. A bucket travels
as soon as its last gradient is there (Li et al. 2020, arXiv:2006.15704), always in the same order on every rank. The flat
buffer makes norm, scaling and clearing one pass each. It costs no memory beyond the gradients themselves; autograd's
accumulation into it costs one pass over them (10 ms for 14M parameters).
"""

from typing import Any

import torch
from torch import Tensor, nn

from shoal.parallel.wire import Wire


class AllReduce:
    """Sums gradients over ranks in buckets of `bucket_bytes`, overlapped with the last backward pass of a step."""

    def __init__(self, wire: Wire, bucket_bytes: int = 8 << 20) -> None:
        self.wire = wire
        self.bucket_bytes = bucket_bytes
        self._flat = torch.empty(0)
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[Tensor, _Bucket] = {}
        self._next = 0
        self._travel = False

    def attach(self, model: nn.Module) -> None:
        """Broadcast rank 0's weights and buffers, and lay the gradients out. Raises `ValueError` for mixed types."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.wire.broadcast(tensor.data)
        # backward reaches the last parameters first
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad][::-1]
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise ValueError(f"gradients must share one type and device, these have {kinds or 'none'}")
        (dtype, device) = kinds.pop()
        self._flat = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=dtype, device=device)
        start = 0
        bucket_start, members = 0, []
        for index, parameter in enumerate(parameters):
            end = start + parameter.numel()
            parameter.grad = self._flat[start:end].view_as(parameter)
            members.append(parameter)
            full = (end - bucket_start) * self._flat.element_size() >= self.bucket_bytes
            if full or index == len(parameters) - 1:
                bucket = _Bucket(self._flat[bucket_start:end], len(members))
                self._buckets.append(bucket)
                self._bucket_of.update(dict.fromkeys(members, bucket))
                bucket_start, members = end, []
            start = end
        if self.wire.world.size > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin_backward(self, last: bool) -> None:
        """A backward pass follows; buckets travel during the `last` of a step."""
        self._travel = last
        for bucket in self._buckets:
            bucket.missing = bucket.members

    def before_step(self) -> None:
        """Send what backward did not fill (parameters that took no part), and wait for all buckets."""
        self._send(len(self._buckets))
        for bucket in self._buckets:
            self.wire.finish(bucket.work)
            bucket.work = None
        self._next = 0
        self._travel = False

    def sum_totals(self, totals: Tensor) -> Tensor:
        """[micro-batches of this rank, n] to their sums [n] over micro-batches and ranks, in one small message."""
        return self.wire.sum(totals.sum(0))

    def grad_norm(self) -> Tensor:
        """Euclidean norm over the flat buffer; equal on all ranks."""
        return torch.linalg.vector_norm(self._flat)

    def scale_grads(self, factor: float) -> None:
        """Multiply the flat buffer."""
        if factor != 1.0:
            self._flat.mul_(factor)

    def after_step(self) -> None:
        """Clear the gradients for the next step."""
        self._flat.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to take up."""

    def _arrived(self, parameter: Tensor) -> None:
        bucket = self._bucket_of[parameter]
        bucket.missing -= 1
        if self._travel and bucket.missing == 0:
            ready = self._next
            while ready < len(self._buckets) and self._buckets[ready].missing == 0:
                ready += 1
            self._send(ready)

    def _send(self, end: int) -> None:
        """Start buckets in order, up to `end`: ranks must agree on the order of collectives."""
        for bucket in self._buckets[self._next : end]:
            bucket.work = self.wire.start_sum(bucket.values)
        self._next = max(self._next, end)


class _Bucket:
    """A contiguous piece of the flat buffer that travels as one message."""

    def __init__(self, values: Tensor, members: int) -> None:
        self.values = values
        self.members = members
        self.missing = members
        self.work: Any = None
