"""Gradients in one flat buffer, which travels in buckets while backward still runs.

All gradients are views into the buffer, in the order in which backward fills them. A bucket leaves as soon as its last
gradient is there (Li et al. 2020, arXiv:2006.15704), always in the same order on every rank. The buffer costs no memory
beyond the gradients themselves; autograd's accumulation into it costs one pass over them (10 ms for 14M parameters).
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Bucket:
    """A contiguous piece of the flat buffer that travels as one message; `work` is what `send` gave for it."""

    def __init__(self, start: int, end: int, members: int) -> None:
        self.start, self.end, self.members = start, end, members
        self.missing = members
        self.work: Any = None


class Buckets:
    """The flat buffer of `parameters`' gradients, and when which part of it is sent.

    `multiple`: the length of a bucket is one of this many elements, for cutting it into equal pieces. `apart`: those of the
    parameters that come last, in buckets of their own. `early`: those that come first, whose arrival others tell
    (`arrived`). `memory`: gives zeros of a length, type and device. Raises `ValueError` for parameters of mixed types.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        bucket_bytes: int,
        send: Callable[[Bucket], Any],
        multiple: int = 1,
        apart: Collection[nn.Parameter] = (),
        early: Collection[nn.Parameter] = (),
        memory: Callable[[int, torch.dtype, torch.device], Tensor] | None = None,
    ) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise ValueError(f"gradients must share one type and device, these have {kinds or 'none'}")
        (dtype, device) = kinds.pop()
        # backward reaches the last parameters first
        backwards, first, last = parameters[::-1], {*early}, {*apart}
        self.parameters = sorted(backwards, key=lambda parameter: (parameter in last) - (parameter in first))
        self.starts: list[int] = []
        self.buckets: list[Bucket] = []
        self._send_one = send
        self._bucket_of: dict[Tensor, Bucket] = {}
        self._watches: list[RemovableHandle] = []
        self._next = 0
        self._travel = False
        self._lay_out(bucket_bytes // dtype.itemsize, multiple, {len(parameters) - len(last) - 1, len(parameters) - 1})
        length = self.buckets[-1].end
        self.flat = torch.zeros(length, dtype=dtype, device=device) if memory is None else memory(length, dtype, device)
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            parameter.grad = self.flat[start : start + parameter.numel()].view_as(parameter)
            self._watches.append(parameter.register_post_accumulate_grad_hook(self.arrived))

    def detach(self) -> None:
        """Leave the parameters as they were, without gradients."""
        for watch in self._watches:
            watch.remove()
        for parameter in self.parameters:
            parameter.grad = None

    def begin_backward(self, last: bool) -> None:
        """A backward pass follows; buckets travel during the `last` of a step."""
        self._travel = last
        for bucket in self.buckets:
            bucket.missing = bucket.members

    def arrived(self, parameter: Tensor) -> None:
        """A gradient of this backward pass is there."""
        bucket = self._bucket_of[parameter]
        bucket.missing -= 1
        if self._travel and bucket.missing == 0:
            ready = self._next
            while ready < len(self.buckets) and self.buckets[ready].missing == 0:
                ready += 1
            self._send(ready)

    def send_rest(self) -> None:
        """Send what backward did not fill: parameters that took no part."""
        self._send(len(self.buckets))
        self._next = 0
        self._travel = False

    def _lay_out(self, full: int, multiple: int, ends: set[int]) -> None:
        position, start = 0, 0
        members: list[nn.Parameter] = []
        for index, parameter in enumerate(self.parameters):
            self.starts.append(position)
            position += parameter.numel()
            members.append(parameter)
            if position - start >= full or index in ends:
                position += -(position - start) % multiple
                bucket = Bucket(start, position, len(members))
                self.buckets.append(bucket)
                self._bucket_of.update(dict.fromkeys(members, bucket))
                start, members = position, []

    def _send(self, end: int) -> None:
        """Start buckets in order, up to `end`: ranks must agree on the order of collectives."""
        for bucket in self.buckets[self._next : end]:
            bucket.work = self._send_one(bucket)
        self._next = max(self._next, end)
