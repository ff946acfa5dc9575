"""Whole matrices out of the parts that ranks hold, for an optimizer that can't work on parts, such as Muon.

Each matrix is one rank's to put together: the others send it their parts, and get back their parts of what it made of the
whole. With N ranks and n bytes of matrices in all, a rank sends about 2 n (N − 1) / N² bytes, and does an N-th of the work
(as in the distributed Muon of Liu et al. 2025, arXiv:2502.16982, with owners in place of a gather by everyone).
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from shoal.parallel.mesh import Axis
from shoal.parallel.shards import Boxes, Shards, cut, put, share_out
from shoal.parallel.wire import Wire


class Matrices:
    """The matrices `shards`, of which each rank of `axis` holds parts; all of the world's ranks must make one.

    `mine`: the names of those that this rank puts together.
    """

    def __init__(self, wire: Wire, axis: Axis, shards: Shards) -> None:
        self.wire, self.axis = wire, axis
        self.shapes = {name: shard.shape for name, shard in shards.items()}
        self.parts = {name: shard.value.shape for name, shard in shards.items()}
        self.owned = share_out({name: work(shape) for name, shape in self.shapes.items()}, axis.size)
        self.mine = self.owned[axis.rank]
        self.boxes: list[dict[str, Boxes]] = []
        if not wire.imagined:  # else there is nobody to ask, nor to send to
            first = wire.world.rank - axis.rank
            everyone = wire.gather_objects({name: shard.boxes for name, shard in shards.items()})
            self.boxes = everyone[first : first + axis.size]

    def collect(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's parts of all matrices, by name, to the whole ones [rows, columns] of those that are its own."""
        kind = next(iter(parts.values()))
        wholes = {name: kind.new_empty(self.shapes[name]) for name in self.mine}
        if not self.boxes:
            self.wire.count("all-to-all", sum(part.nbytes for name, part in parts.items() if name not in self.mine))
            return wholes
        pieces = [_joined((parts[name] for name in names), kind) for names in self.owned]
        sizes = [[_size(boxes[name], self.shapes[name]) for name in self.mine] for boxes in self.boxes]
        received = [kind.new_empty(sum(its)) for its in sizes]
        self.wire.finish(self.wire.start_exchange(received, pieces, self.axis))
        for boxes, message, its in zip(self.boxes, received, sizes, strict=True):
            for name, part in zip(self.mine, message.split(its), strict=True):
                if part.numel():
                    put(wholes[name], boxes[name], part)
        return wholes

    def give_back(self, wholes: Mapping[str, Tensor], kind: Tensor) -> dict[str, Tensor]:
        """What has become of this rank's own matrices to this rank's parts of all; `kind` has their type and device."""
        parts = {name: kind.new_empty(shape) for name, shape in self.parts.items()}
        if not self.boxes:
            self.wire.count("all-to-all", sum(wholes[name].nbytes - parts[name].nbytes for name in self.mine))
            return parts
        pieces = [_joined((cut(wholes[name], boxes[name]) for name in self.mine), kind) for boxes in self.boxes]
        received = [kind.new_empty(sum(self.parts[name].numel() for name in names)) for names in self.owned]
        self.wire.finish(self.wire.start_exchange(received, pieces, self.axis))
        for names, message in zip(self.owned, received, strict=True):
            for name, part in zip(names, message.split([self.parts[name].numel() for name in names]), strict=True):
                parts[name] = part.view(self.parts[name])
        return parts


def work(shape: torch.Size) -> int:
    """Of making a matrix orthogonal: products with its Gram matrix."""
    return shape.numel() * min(shape)


def _size(boxes: Boxes, shape: torch.Size) -> int:
    """Elements of a part."""
    return torch.Size(boxes[-1].sizes if boxes else shape).numel()


def _joined(parts: Iterable[Tensor], kind: Tensor) -> Tensor:
    flat = [part.flatten() for part in parts]
    return torch.cat(flat) if flat else kind.new_empty(0)
