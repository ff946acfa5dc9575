"""Sums over ranks of one machine, in memory that all of them see: nothing is sent.

A rank's gradients lie in a buffer that the others have mapped, too. When all are there, each rank sums its piece over all
buffers, in the order of ranks, into its own, and then fetches the other pieces from where they were summed: all have the
same to the bit. Through sockets each number is copied several times, by the same cores that compute.
"""

import mmap
import os
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.buckets import Bucket
from shoal.parallel.mesh import Axis
from shoal.parallel.shards import Shards
from shoal.parallel.wire import Wire

TOGETHER = 1 << 16
"""Numbers that are summed at a time, 256 KiB a rank: they stay in a core's cache until they are written."""


class SharedAllReduce(AllReduce):
    """As `AllReduce`, between ranks of one machine, on its processors, that are all data ranks.

    Sums begin when the slowest rank's backward has ended, and cost so little that hiding them would save less.
    """

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Lay the gradients out, in shared memory where the system has it. Raises `ValueError` for mixed types."""
        self.buffers: list[Tensor] | None = None
        super().attach(model, shards)

    def before_step(self) -> None:
        """Sum."""
        if self.buffers is None:
            super().before_step()
            return
        self.gradients.send_rest()
        axis, length = self.mesh.data, len(self.gradients.flat)
        mine = self.buffers[axis.rank]
        edges = [length * rank // axis.size for rank in range(axis.size + 1)]
        self._meet()  # all gradients are there
        for start in range(edges[axis.rank], edges[axis.rank + 1], TOGETHER):
            part = slice(start, min(start + TOGETHER, edges[axis.rank + 1]))
            total = self.buffers[0][part] + self.buffers[1][part]
            for other in self.buffers[2:]:
                total += other[part]
            mine[part] = total
        self._meet()  # all pieces are summed
        for rank, other in enumerate(self.buffers):
            if rank != axis.rank:
                mine[edges[rank] : edges[rank + 1]] = other[edges[rank] : edges[rank + 1]]
        self._meet()  # nobody reads this buffer any more

    def _memory(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        self.buffers = map_buffers(self.wire, self.mesh.data, length, dtype)
        return super()._memory(length, dtype, device) if self.buffers is None else self.buffers[self.mesh.data.rank]

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
