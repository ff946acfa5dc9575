"""Gradients of the few rows of a table that ranks have looked up in a step: each rank sends its own, encoded, to all others.

Of a vocabulary's embedding, a step of 2,048 tokens reads some hundred rows. All of the table's gradients would be the last
of backward, with nothing left to compute while they travel. Every rank adds what all have sent, itself included, in the
order of ranks: decoded from the same bytes, so all have the same sums to the bit. What the codec drops of a row goes to the
feedback of its place in the table, whose other gradients travel by another way (`parallel.coded_all_reduce`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.parallel.codecs.blocks import pack_flags, unpack_flags
from shoal.parallel.codecs.codec import Codec, encode_with_feedback
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire


@dataclass(frozen=True)
class Travelling:
    """Each rank's rows on their way: which, and encoded."""

    work: Any
    rows: list[Tensor]
    payloads: list[Tensor]


class LookedUp:
    """The rows of `table` [rows, dim] that this rank and others along `axis` have looked up in a step.

    Both of `tell` and `send` are collectives. All feedback is added: what was to decay of it has, where the table's other
    gradients were sent.
    """

    def __init__(self, wire: Wire, axis: Axis, codec: Codec, table: nn.Parameter) -> None:
        self.wire, self.axis, self.codec, self.table = wire, axis, codec, table
        self._found: list[tuple[Tensor, Tensor]] = []
        self._mine = self._flags = torch.empty(0)
        self._telling: Any = None

    def keep(self, rows_N: Tensor, gradient_ND: Tensor) -> None:
        """Gradients of rows, of which some may come several times."""
        self._found.append((rows_N, gradient_ND))

    def tell(self) -> None:
        """Begin to tell the others which rows have gradients in this step."""
        rows, device = len(self.table), self.table.device
        flags = torch.zeros(1, rows + -rows % 8, dtype=torch.bool, device=device)
        if self.wire.imagined:
            self._mine = torch.empty(min(rows, sum(len(its) for its, _ in self._found)), device=device)
        else:
            for its, _ in self._found:
                flags[0, its] = True
            self._mine = flags[0].nonzero()[:, 0]
        self._flags = torch.empty(self.axis.size * flags.shape[1] // 8, dtype=torch.uint8, device=device)
        self._telling = self.wire.start_gather(self._flags, pack_flags(flags)[0], self.axis)

    def send(self, dropped: Tensor | None) -> Travelling:
        """Begin to send this rank's rows; `dropped` [rows, dim], the feedback, is brought up to date (None: forgotten)."""
        self.wire.finish(self._telling)
        dim = self.table.shape[1]
        own = self._gradients(dim)
        sent = torch.empty(self.codec.nbytes(own.numel()), dtype=torch.uint8, device=own.device)
        if self.wire.imagined:
            self.wire.count("all-to-all", (self.axis.size - 1) * len(sent))
            return Travelling(None, [], [])
        if dropped is None:
            self.codec.encode(own.flatten(), sent)
        else:
            kept = dropped[self._mine].flatten()
            encode_with_feedback(self.codec, own.flatten(), kept, sent)
            dropped[self._mine] = kept.view(-1, dim)
        flags = unpack_flags(self._flags.view(self.axis.size, -1)).cpu()
        rows = [its.nonzero()[:, 0] for its in flags[:, : len(self.table)]]
        received = [sent.new_empty(self.codec.nbytes(len(its) * dim)) for its in rows]
        work = self.wire.start_exchange(received, [sent] * self.axis.size, self.axis)
        return Travelling(work, [its.to(own.device) for its in rows], received)

    def add(self, travelling: Travelling) -> None:
        """Wait for them, and add them to the table's gradient."""
        self.wire.finish(travelling.work)
        gradient_VD = self.table.grad
        assert gradient_VD is not None
        for rows, payload in zip(travelling.rows, travelling.payloads, strict=True):
            decoded = gradient_VD.new_empty(len(rows) * gradient_VD.shape[1])
            self.codec.decode(payload, decoded)
            gradient_VD.index_add_(0, rows, decoded.view(len(rows), -1))

    def _gradients(self, dim: int) -> Tensor:
        """The sums [rows of this rank, dim] over all that was kept, which is forgotten."""
        found, self._found = self._found, []
        own = self.table.new_zeros(len(self._mine), dim)
        if not self.wire.imagined:
            place = torch.empty(len(self.table), dtype=torch.int64, device=own.device)
            place[self._mine] = torch.arange(len(self._mine), device=own.device)
            for rows, gradients in found:
                own.index_add_(0, place[rows], gradients.to(own.dtype))
        return own
