"""Which part of which tensor a rank holds: said as data, so that any division can be put together, or cut anew.

A part is a chain of boxes. A box is index ranges along the axes of a view of what it is cut from: rows of a matrix, some of
its columns, or, over its elements in a row, any piece of it. The second box of a chain is cut from the first: the tensor
rank's columns of a matrix, then the sharding rank's rows of these.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Box:
    """`sizes` elements from `start` on, along each axis of the whole seen as `view`."""

    view: tuple[int, ...]
    start: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def along(cls, shape: Sequence[int], axis: int, start: int, end: int) -> "Box":
        """Indices [start, end) along one axis, and all of the others."""
        starts, sizes = [0] * len(shape), list(shape)
        starts[axis], sizes[axis] = start, end - start
        return cls(tuple(shape), tuple(starts), tuple(sizes))

    @classmethod
    def piece(cls, shape: Sequence[int], start: int, end: int) -> "Box":
        """Elements [start, end) of all in a row."""
        return cls((math.prod(shape),), (start,), (end - start,))

    @property
    def slices(self) -> tuple[slice, ...]:
        """For indexing the view."""
        return tuple(slice(start, start + size) for start, size in zip(self.start, self.sizes, strict=True))

    def overlap(self, other: "Box") -> "Box | None":
        """What two boxes of one view share; None for nothing."""
        start = tuple(map(max, self.start, other.start))
        mine, its = (tuple(a + n for a, n in zip(box.start, box.sizes, strict=True)) for box in (self, other))
        sizes = tuple(min(a, b) - first for a, b, first in zip(mine, its, start, strict=True))
        return Box(self.view, start, sizes) if all(size > 0 for size in sizes) else None

    def inside(self, outer: "Box") -> tuple[slice, ...]:
        """Where this lies in a tensor that holds `outer`, a box of the same view."""
        shifted = (mine - its for mine, its in zip(self.start, outer.start, strict=True))
        return tuple(slice(start, start + size) for start, size in zip(shifted, self.sizes, strict=True))


Boxes = tuple[Box, ...]
"""From the whole to a part of it; none: the whole."""


def cut(whole: Tensor, boxes: Boxes) -> Tensor:
    """The part of a whole tensor; a view of it where that is possible."""
    for box in boxes:
        whole = whole.reshape(box.view)[box.slices]
    return whole


def put(whole: Tensor, boxes: Boxes, part: Tensor) -> None:
    """Write a part to where it belongs in the whole, which must be contiguous."""
    if not boxes:
        whole.copy_(part.reshape(whole.shape))
        return
    box, *rest = boxes
    place = whole.view(box.view)[box.slices]
    if not rest:
        place.copy_(part.reshape(place.shape))
        return
    outer = place.contiguous()
    put(outer, tuple(rest), part)
    if outer.data_ptr() != place.data_ptr():
        place.copy_(outer)


@dataclass(frozen=True)
class Shard:
    """A rank's part of a parameter: the values that its optimizer changes.

    `shape` is the whole's; `copies` says how many of the ranks that divide the model among them hold this very part, and
    `first` whether this one writes it to checkpoints.
    """

    value: nn.Parameter
    shape: torch.Size
    boxes: Boxes = ()
    copies: int = 1
    first: bool = True


Shards = dict[str, Shard]
"""By the parameter's name in the model."""


def whole_shards(model: nn.Module) -> Shards:
    """Every parameter, undivided."""
    return {name: Shard(parameter, parameter.shape) for name, parameter in model.named_parameters()}


def learnt(shards: Shards) -> Shards:
    """Those that are trained."""
    return {name: shard for name, shard in shards.items() if shard.value.requires_grad}


def share_out(work: Mapping[str, int], ranks: int) -> list[list[str]]:
    """Which rank has which of them: the most work first, each to the rank that has the least, the same on all ranks."""
    owned: list[list[str]] = [[] for _ in range(ranks)]
    given = [0] * ranks
    for name in sorted(work, key=lambda name: (-work[name], name)):
        rank = given.index(min(given))
        owned[rank].append(name)
        given[rank] += work[name]
    return owned


def held_by_several(shards: Shards) -> list[nn.Parameter]:
    """The parts that other ranks hold, too: what they do to them must be the same to the bit.

    Codecs take what lies side by side together, so these may not lie beside parts that others don't have.
    """
    return [shard.value for shard in shards.values() if shard.copies > 1]


@torch.no_grad()
def squared_norm(shards: Shards) -> Tensor:
    """This rank's contribution to the squared norm of all gradients, in fp64; parts held by several count once in all."""
    by_copies: dict[int, list[Tensor]] = {}
    for shard in shards.values():
        if shard.value.grad is not None and shard.value.numel():
            by_copies.setdefault(shard.copies, []).append(shard.value.grad)
    total = torch.zeros((), dtype=torch.float64, device=next(iter(shards.values())).value.device)
    for copies, gradients in by_copies.items():
        total += torch.stack(torch._foreach_norm(gradients)).double().square().sum() / copies
    return total
