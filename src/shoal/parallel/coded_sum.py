"""Sums over ranks of numbers that travel encoded.

Encoded numbers can't be added on the way, and gloo's own reduce-scatter sends all to all. So each rank sends every other
one the piece that the other is to sum (encoded), decodes and adds what it got in fp32 and in the order of ranks, and sends
the sum (encoded) to all. A rank's own numbers enter its piece exact. What was dropped of a rank's numbers, and of the sum of
its piece, it keeps as one error feedback (Tang et al. 2019, arXiv:1905.05957): it all belongs to the one sum. Every rank
decodes the same bytes, so all have the same result to the bit.
"""

from collections.abc import Generator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.parallel.codecs.codec import Codec, encode_with_feedback
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Stages, Wire

MESSAGE_BYTES = 2 << 20
"""Gradients (fp32) in a message. On 100 Mbit/s half a million int4 values take 20 ms, and a round trip less than one; on a
core they take 2 ms to encode."""


class Sums(Protocol):
    """Sums of fp32 tensors over an axis, in the background."""

    multiple: int
    """Lengths must be one of it."""

    def wire_bytes(self, length: int) -> int:
        """What a rank sends for `length` numbers."""
        ...

    def start(self, values: Tensor, dropped: Tensor | None) -> Any:
        """Begin to replace `values` by their sum over the ranks; pass the result to `wire.finish`.

        `dropped` [n] is this rank's feedback, brought up to date; zeros at the beginning, None to forget what the codec
        drops. Ranks must start sums in the same order.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What one sum leaves to the next, by parameter name, the same on all ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        return


class CodedSum(Sums):
    """Sums of fp32 tensors [n] over an axis, in the background; `n` must be a multiple of `multiple`.

    The axis needs a channel of its own (`own_channel`). `back`: another one for the sums, which then travel while the
    next numbers do. `decay`: the share of what was dropped that is added.
    """

    def __init__(self, wire: Wire, axis: Axis, codec: Codec, decay: float = 1.0, back: Axis | None = None) -> None:
        self.wire, self.axis, self.codec, self.decay = wire, axis, codec, decay
        self.back, self.pausing = back or axis, back is not None
        self.multiple = axis.size * codec.block

    def wire_bytes(self, length: int) -> int:
        """What a rank sends for `length` numbers."""
        return 2 * self.scatter_bytes(length)

    def scatter_bytes(self, length: int) -> int:
        """What a rank sends for `length` numbers where each gets its piece alone."""
        return (self.axis.size - 1) * self.codec.nbytes(length // self.axis.size)

    def start(self, values: Tensor, dropped: Tensor | None) -> Any:
        """Begin to replace `values` by their sum over the ranks; pass the result to `wire.finish`.

        `dropped` [n] is this rank's feedback, brought up to date; zeros at the beginning, None to forget what the codec
        drops. Ranks must start sums in the same order.
        """
        return None if self.axis.size == 1 else self.wire.in_stages(self.sum(values, dropped))

    def scatter_sum(self, values: Tensor, dropped: Tensor | None) -> Generator[None, None, Tensor]:
        """The stages to this rank's piece of the sum, exact but for what the others dropped; `wire.in_stages` runs them.

        `values` may have a row a rank, with room between them. The feedback of this rank's piece stays as it was.
        """
        size, rank = self.axis.size, self.axis.rank
        pieces, kept = values.view(size, -1), _pieces(dropped, size)
        sent = torch.empty(size, self.codec.nbytes(pieces.shape[1]), dtype=torch.uint8, device=values.device)
        for other in range(size):
            if other != rank:
                self._encode(pieces[other], kept[other], sent[other])
        received = torch.empty_like(sent)
        arriving = self.wire.start_all_to_all(received, sent, self.axis)
        if self.pausing:
            yield
        self.wire.wait(arriving)
        total = torch.zeros_like(pieces[rank])
        for other in range(size):
            if other == rank:
                total.add_(pieces[rank])
            else:
                self.codec.decode(received[other], total, add=True)
        return total

    def sum(self, values: Tensor, dropped: Tensor | None) -> Stages:
        """The stages to the whole sum, in the place of `values`."""
        size, rank = self.axis.size, self.axis.rank
        total = yield from self.scatter_sum(values, dropped)
        pieces = values.view(size, -1)
        mine = torch.empty(self.codec.nbytes(len(total)), dtype=torch.uint8, device=values.device)
        self._encode(total, _pieces(dropped, size)[rank], mine)
        whole = torch.empty(size * len(mine), dtype=torch.uint8, device=values.device)
        arriving = self.wire.start_gather(whole, mine, self.back)
        if self.pausing:
            yield
        self.wire.wait(arriving)
        for other, payload in enumerate(whole.view(size, -1)):
            self.codec.decode(payload, pieces[other])

    def _encode(self, values: Tensor, dropped: Tensor | None, payload: Tensor) -> None:
        """Encode; `values` may be overwritten."""
        if dropped is None:
            self.codec.encode(values, payload)
        else:
            encode_with_feedback(self.codec, values, dropped, payload, self.decay)


def _pieces(dropped: Tensor | None, size: int) -> list[Tensor | None]:
    return [None] * size if dropped is None else [*dropped.view(size, -1)]
