"""Ranks of one machine meet in memory that all of them see: nothing is sent, and each updates a share of the weights.

A rank's gradients and weights lie in a buffer that the others have mapped, too. Each parameter has an owner. When all
gradients are there, each rank sums an equal piece over all buffers, in the order of ranks, into the owners'. An optimizer
steps on its rank's own parameters alone, whose state nobody else keeps (as in ZeRO-1, Rajbhandari et al. 2020,
arXiv:1910.02054); then each rank fetches the others' new weights. Through sockets each number is copied several times, by
the same cores that compute, and where all step on everything, they read and write the whole state together.
"""

import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.buckets import Bucket
from shoal.parallel.mesh import Axis, Mesh
from shoal.parallel.shards import Shards, share_out, squared_norm
from shoal.parallel.wire import Wire

TOGETHER = 1 << 16
"""Numbers that are summed at a time, 256 KiB a rank: they stay in a core's cache until they are written."""


class SharedMemory(AllReduce):
    """Between ranks of one machine, on its processors, that are all data ranks.

    As `AllReduce` where memory can't be shared, or there are fewer parameters than ranks. `work`: what an optimizer does for
    a parameter of that name and shape, in passes over an element, about.

    Sums begin when the slowest rank's backward has ended, and cost so little that hiding them would save less. Parameters
    are owned whole, so that every optimizer does with them what it does where it has all.
    """

    def __init__(
        self,
        wire: Wire,
        mesh: Mesh,
        bucket_bytes: int = 8 << 20,
        work: Callable[[str, torch.Size], int] = lambda name, shape: shape.numel(),
    ) -> None:
        super().__init__(wire, mesh, bucket_bytes)
        self.work = work

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Lay gradients and weights out; `shards` are then this rank's own. Raises `ValueError` for mixed types."""
        self.buffers: list[Tensor] | None = None
        self.some_for_each = len(shards) >= self.mesh.data.size
        super().attach(model, shards)
        if self.buffers is not None:
            self._divide(shards)

    def before_step(self) -> None:
        """Sum."""
        super().before_step()
        if self.buffers is None:
            return
        self._meet()  # all gradients are there
        for first, last, owner in self.summed:
            for start in range(first, last, TOGETHER):
                part = slice(start, min(start + TOGETHER, last))
                total = self.buffers[0][part] + self.buffers[1][part]
                for other in self.buffers[2:]:
                    total += other[part]
                self.buffers[owner][part] = total  # nobody else reads or writes this part of any buffer
        self._meet()  # all sums are there

    def grad_norm(self) -> Tensor:
        """Of what each rank has summed."""
        if self.buffers is None:
            return super().grad_norm()
        return torch.sqrt(self.wire.sum(squared_norm(self.shards), self.mesh.data))

    def scale_grads(self, factor: float) -> None:
        """Multiply the gradients of this rank's parameters."""
        if self.buffers is None:
            super().scale_grads(factor)
        elif factor != 1.0:
            for shard in self.shards.values():
                if shard.value.grad is not None:
                    shard.value.grad.mul_(factor)

    def after_step(self) -> None:
        """Fetch the others' weights, and clear the gradients for the next step."""
        self.weights_changed()
        super().after_step()

    def weights_changed(self) -> None:
        """Each rank's own have changed: fetch them."""
        if self.buffers is None:
            return
        rank, length = self.mesh.data.rank, len(self.gradients.flat)
        self._meet()  # all have changed
        for owner, other in enumerate(self.buffers):
            if owner != rank:
                its = slice(length + self.edges[owner], length + self.edges[owner + 1])
                self.buffers[rank][its] = other[its]
        self._meet()  # nobody reads this buffer any more

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up, but the weights."""
        self.weights_changed()

    def _divide(self, shards: Shards) -> None:
        """Give each parameter an owner, and let weights lie in the second half of the buffer, by owner."""
        assert self.buffers is not None
        rank, length = self.mesh.data.rank, len(self.gradients.flat)
        weights = self.buffers[rank][length:]
        axis = self.mesh.data
        owned = share_out({name: self.work(name, shard.value.shape) for name, shard in shards.items()}, axis.size)
        self.edges = [0]
        for names in owned:
            end = self.edges[-1]
            for value in (shards[name].value for name in names):
                start, end = end, end + value.numel()
                weights[start:end] = value.data.flatten()
                value.data = weights[start:end].view_as(value)
            self.edges.append(end)
        self.shards = {name: shard for name, shard in shards.items() if name in owned[rank]}
        first, last = (length * edge // axis.size for edge in (rank, rank + 1))
        owners = {shards[name].value: owner for owner, names in enumerate(owned) for name in names}
        self.summed: list[tuple[int, int, int]] = []
        """From where to where in the buffers this rank sums, and whose the parameter is."""
        for value, start in zip(self.gradients.parameters, self.gradients.starts, strict=True):
            begin, end = max(start, first), min(start + value.numel(), last)
            if begin < end:
                self.summed.append((begin, end, owners[value]))

    def _memory(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.some_for_each:
            self.buffers = map_buffers(self.wire, self.mesh.data, 2 * length, dtype)
        if self.buffers is None:
            return super()._memory(length, dtype, device)
        return self.buffers[self.mesh.data.rank][:length]

    def _send(self, bucket: Bucket) -> object:
        return super()._send(bucket) if self.buffers is None else None

    def _meet(self) -> None:
        self.wire.sum(torch.zeros(1), self.mesh.data)


def map_buffers(wire: Wire, axis: Axis, length: int, dtype: torch.dtype) -> list[Tensor] | None:
    """A buffer [length] of zeros of every rank's, which all ranks see, by rank; None where the system has none such.

    The axis is of all ranks. Memory without a name, which is gone with the last rank however that ends, and isn't
    bounded by the size of /dev/shm, which is small in containers. Containers may share a network and a boot, and yet count
    processes apart, so that a path leads to another's file: device and inode tell whether it is the one that is meant.
    """
    with ExitStack() as closing:
        said = None
        with suppress(AttributeError, OSError):  # not on Linux, or out of memory
            mine = os.memfd_create("shoal")
            closing.callback(os.close, mine)
            os.ftruncate(mine, length * dtype.itemsize)
            said = f"/proc/{os.getpid()}/fd/{mine}", _identity(mine)
        buffers = []
        for told in wire.gather_objects(said):
            with suppress(OSError, TypeError):  # another's processes are not for this one to look at; there is none
                path, identity = told
                number = os.open(path, os.O_RDWR)
                closing.callback(os.close, number)
                if _identity(number) == identity:
                    buffers.append(torch.frombuffer(mmap.mmap(number, length * dtype.itemsize), dtype=dtype))
        mapped = min(wire.gather_objects(len(buffers)))  # also: all have mapped what the paths are of
    return buffers if mapped == axis.size else None


def _identity(number: int) -> tuple[int, int]:
    found = os.fstat(number)
    return found.st_dev, found.st_ino
