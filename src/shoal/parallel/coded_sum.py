"""Sums over ranks of numbers that travel encoded.

Encoded numbers can't be added on the way, and gloo's own reduce-scatter sends all to all. So each rank sends every other
one the piece that the other is to sum (encoded), decodes and adds what it got in fp32 and in the order of ranks, and sends
the sum (encoded) to all. A rank's own numbers enter its piece exact. What was dropped of a rank's numbers, and of the sum of
its piece, it keeps as one error feedback (Tang et al. 2019, arXiv:1905.05957): it all belongs to the one sum. Every rank
decodes the same bytes, so all have the same result to the bit.
"""

from typing import Any

import torch
from torch import Tensor

from shoal.parallel.codecs.codec import Codec, encode_with_feedback
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire


class CodedSum:
    """Sums of fp32 tensors [n] over an axis, in the background; `n` must be a multiple of `multiple`.

    The axis needs a channel of its own (`own_channel`). `decay`: the share of what was dropped that is added.
    """

    def __init__(self, wire: Wire, axis: Axis, codec: Codec, decay: float = 1.0) -> None:
        self.wire, self.axis, self.codec, self.decay = wire, axis, codec, decay
        self.multiple = axis.size * codec.block

    def wire_bytes(self, length: int) -> int:
        """What a rank sends for `length` numbers."""
        return 2 * (self.axis.size - 1) * self.codec.nbytes(length // self.axis.size)

    def start(self, values: Tensor, dropped: Tensor | None) -> Any:
        """Begin to replace `values` by their sum over the ranks; pass the result to `wire.finish`.

        `dropped` [n] is this rank's feedback, brought up to date; zeros at the beginning, None to forget what the codec
        drops. Ranks must start sums in the same order.
        """
        if self.axis.size == 1:
            return None
        if self.wire.imagined:
            self.wire.count("all-to-all", self.wire_bytes(len(values)) // 2)
            self.wire.count("all-gather", self.wire_bytes(len(values)) // 2)
            return None
        return self.wire.in_background(lambda: self._sum(values, dropped))

    def scatter_sum(self, values: Tensor, dropped: Tensor | None) -> Tensor:
        """This rank's piece of the sum, exact but for what the others dropped; blocks, so call it in the background."""
        size, rank = self.axis.size, self.axis.rank
        pieces = values.view(size, -1)
        kept = [None] * size if dropped is None else [*dropped.view(size, -1)]
        sent = torch.empty(size, self.codec.nbytes(pieces.shape[1]), dtype=torch.uint8, device=values.device)
        for other in range(size):
            if other != rank:
                self._encode(pieces[other], kept[other], sent[other])
        received = torch.empty_like(sent)
        self.wire.wait(self.wire.start_all_to_all(received, sent, self.axis))
        total = torch.zeros_like(pieces[rank])
        for other in range(size):
            if other == rank:
                total.add_(pieces[rank])
            else:
                self.codec.decode(received[other], total, add=True)
        return total

    def _sum(self, values: Tensor, dropped: Tensor | None) -> None:
        size, rank = self.axis.size, self.axis.rank
        total = self.scatter_sum(values, dropped)
        pieces = values.view(size, -1)
        mine = torch.empty(self.codec.nbytes(len(total)), dtype=torch.uint8, device=values.device)
        self._encode(total, None if dropped is None else dropped.view(size, -1)[rank], mine)
        whole = torch.empty(size * len(mine), dtype=torch.uint8, device=values.device)
        self.wire.wait(self.wire.start_gather(whole, mine, self.axis))
        for other, payload in enumerate(whole.view(size, -1)):
            self.codec.decode(payload, pieces[other])

    def _encode(self, values: Tensor, dropped: Tensor | None, payload: Tensor) -> None:
        """Encode; `values` may be overwritten."""
        if dropped is None:
            self.codec.encode(values, payload)
        else:
            encode_with_feedback(self.codec, values, dropped, payload, self.decay)
