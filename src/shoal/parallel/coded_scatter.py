"""Sums of encoded numbers of which each rank gets its piece alone: the gradients of ZeRO (`parallel.coded_sum`).

Within the shard axis each rank sends every other one its piece; between replicas, those who have the same piece then sum it.
What both drop is one feedback: of its own piece a rank drops nothing within, so there is room for what it drops between.
"""

from typing import Any

from torch import Tensor

from shoal.parallel.codecs.codec import Codec
from shoal.parallel.coded_sum import MESSAGE_BYTES, CodedSum
from shoal.parallel.mesh import Mesh
from shoal.parallel.wire import Stages, Wire


class CodedScatter:
    """Pieces of sums over all data ranks, in the background. All ranks must make it, as it opens channels."""

    def __init__(self, wire: Wire, mesh: Mesh, codec: Codec, feedback: bool = True, decay: float = 1.0) -> None:
        self.wire, self.mesh, self.feedback = wire, mesh, feedback
        channel = wire.own_channel(mesh.shard)
        self.within = CodedSum(wire, channel, codec, decay, channel)  # nothing comes back within
        # at one go: with as many stages as both have, ranks could wait for each other in a circle
        self.between = CodedSum(wire, wire.own_channel(mesh.replicate), codec, decay)
        self.multiple = mesh.replicate.size * codec.block
        """Of the length of a piece."""
        self.message = max(1, MESSAGE_BYTES // 4 // mesh.shard.size // self.multiple) * self.multiple
        """Length of a piece in one message, at most."""

    def wire_bytes(self, length: int) -> int:
        """What a rank sends for pieces of `length` numbers."""
        return self.within.scatter_bytes(length * self.mesh.shard.size) + self.between.wire_bytes(length)

    def start(self, mine: Tensor, values: Tensor, dropped: Tensor | None) -> list[Any]:
        """Begin to fill `mine` [n] with this rank's piece of the sum of all ranks' `values` [ranks, n or more].

        `values` are overwritten, and zeros where they reach beyond `mine`; `dropped` is as large as they are. Pass all of
        the result to `wire.finish`.
        """
        works = []
        for start in range(0, values.shape[1], self.message):
            part = slice(start, start + self.message)
            kept = None if dropped is None else dropped[:, part]
            works.append(self.wire.in_stages(self._sum(mine[part], values[:, part], kept)))
        return works

    def _sum(self, mine: Tensor, values: Tensor, dropped: Tensor | None) -> Stages:
        total = yield from self.within.scatter_sum(values, dropped)
        if self.between.axis.size > 1:
            yield from self.between.sum(total, None if dropped is None else dropped[self.mesh.shard.rank])
        mine.copy_(total[: len(mine)])
