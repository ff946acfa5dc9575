"""Ranks of one machine meet in memory that all of them see: nothing is sent, and each updates a share of the weights.

A rank's gradients lie in a buffer that the others have mapped, too. Each parameter has an owner, in whose buffer its weight
lies, which all compute with. Gradients are summed piece by piece, in the order of ranks, into the owners' buffers: a piece
by whoever comes first when all ranks have it, so that ranks that would wait for a slower one sum instead. An optimizer
steps on its rank's own parameters alone, whose state nobody else keeps (as in ZeRO-1, Rajbhandari et al. 2020,
arXiv:1910.02054). Through sockets each number is copied several times, by the same cores that compute, and where all step
on everything, they read and write the whole state together.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.buckets import Bucket
from shoal.parallel.mesh import Axis, Mesh
from shoal.parallel.shards import Shards, share_out
from shoal.parallel.wire import Wire

TAKEN = 1 << 18
"""Numbers of a piece that a rank takes to sum, 1 MiB in fp32: few enough for all to end at about the same time."""
TOGETHER = 1 << 16
"""Of these, how many are summed at a time: they stay in a core's cache until they are written."""


@dataclass(frozen=True)
class Piece:
    """What is summed at a time by one rank: parts of a bucket, each from where to where, and whose the parameter is."""

    bucket: Bucket
    parts: list[tuple[int, int, int]] = field(default_factory=list)


class SharedMemory(AllReduce):
    """Between ranks of one machine, on its processors, that are all data ranks.

    As `AllReduce` where memory can't be shared, or there are fewer parameters than ranks. `work`: what an optimizer does for
    a parameter of that name and shape, in passes over an element, about.

    Parameters are owned whole, so that every optimizer does with them what it does where it has all.
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
        self.memory: Memory | None = None
        self.some_for_each = len(shards) >= self.mesh.data.size
        super().attach(model, shards)
        if self.memory is not None:
            self._divide(shards, self.memory)

    def before_step(self) -> None:
        """Sum what no other rank has begun to, and clear what was summed from, where it isn't the owner's."""
        if self.memory is None:
            super().before_step()
            return
        self.gradients.send_rest()
        self.squares = torch.zeros(len(self.pieces), dtype=torch.float64)
        for number, piece in enumerate(self.pieces):
            self.wire.finish(piece.bucket.work)
            piece.bucket.work = None
            if self.memory.take(number):
                for start, end, owner in piece.parts:
                    self.squares[number] += _sum_into(owner, [buffer[start:end] for buffer in self.memory.buffers])
        self.wire.sum(self.squares, self.mesh.data)  # each is one rank's; then all sums are there
        self.memory.give_back()  # before any rank can have the next step's gradients of all

    def grad_norm(self) -> Tensor:
        """Of what each rank has summed."""
        return super().grad_norm() if self.memory is None else self.squares.sum().sqrt()

    def scale_grads(self, factor: float) -> None:
        """Multiply the gradients of this rank's parameters."""
        if self.memory is None:
            super().scale_grads(factor)
        elif factor != 1.0:
            torch._foreach_mul_(self.own_gradients, factor)
            self.squares *= factor**2

    def after_step(self) -> None:
        """Clear the gradients for the next step, and wait until all weights are new."""
        if self.memory is None:
            super().after_step()
            return
        torch._foreach_zero_(self.own_gradients)
        self._meet()

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """Inside, nobody computes with them."""
        if self.memory is None:
            yield
            return
        self._meet()
        yield
        self._meet()

    def _divide(self, shards: Shards, memory: "Memory") -> None:
        """Give each parameter an owner, and let its weight lie in the second half of that one's buffer."""
        rank, size = self.mesh.data.rank, self.mesh.data.size
        owned = share_out({name: self.work(name, shard.value.shape) for name, shard in shards.items()}, size)
        owners = {}
        for owner, names in enumerate(owned):
            weights = memory.buffers[owner][len(self.gradients.flat) :]
            end = 0
            for value in (shards[name].value for name in names):
                start, end = end, end + value.numel()
                if owner == rank:
                    weights[start:end] = value.data.flatten()
                value.data = weights[start:end].view_as(value)
                owners[value] = owner
        self._meet()  # all weights are there
        self.shards = {name: shard for name, shard in shards.items() if name in owned[rank]}
        self.own_gradients = [shard.value.grad for shard in self.shards.values() if shard.value.grad is not None]
        self.pieces: list[Piece] = []
        laid_out = [*zip(self.gradients.parameters, self.gradients.starts, strict=True)]
        for bucket in self.gradients.buckets:
            for first in range(bucket.start, bucket.end, TAKEN):
                self.pieces.append(Piece(bucket))
                for value, start in laid_out:
                    last = min(start + value.numel(), first + TAKEN, bucket.end)
                    for begin in range(max(start, first), last, TOGETHER):
                        self.pieces[-1].parts.append((begin, min(begin + TOGETHER, last), owners[value]))

    def _memory(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.some_for_each:
            self.memory = share_memory(self.wire, self.mesh.data, 2 * length, dtype)
        if self.memory is None:
            return super()._memory(length, dtype, device)
        return self.memory.buffers[self.mesh.data.rank][:length]

    def _send(self, bucket: Bucket) -> Any:
        """Or only say that it is there."""
        return super()._send(bucket) if self.memory is None else self.wire.start_sum(torch.zeros(1), self.mesh.data)

    def _meet(self) -> None:
        self.wire.sum(torch.zeros(1), self.mesh.data)


def _sum_into(owner: int, of_ranks: list[Tensor]) -> Tensor:
    """The sum, in the order of ranks, in the owner's place, zeros in those of the others; its square in fp64."""
    total = of_ranks[0] + of_ranks[1]
    for other in of_ranks[2:]:
        total += other
    for rank, its in enumerate(of_ranks):
        its.copy_(total) if rank == owner else its.zero_()
    return torch.linalg.vector_norm(total, dtype=torch.promote_types(total.dtype, torch.float32)).double().square()


class Memory:
    """A buffer of every rank's, which all ranks see, by rank, and who does which of some numbered things.

    `file`: rank 0's buffer again. Whoever has locked the byte of its number does it. A process's locks are gone when it
    closes the file, however often it has opened it: no map of it may end before.
    """

    def __init__(self, buffers: list[Tensor], file: int) -> None:
        self.buffers = buffers
        self._file = file
        weakref.finalize(self, os.close, file)

    def take(self, number: int) -> bool:
        """Whether no other rank has taken it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError:
            return False
        return True

    def give_back(self) -> None:
        """All that this rank has taken."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def share_memory(wire: Wire, axis: Axis, length: int, dtype: torch.dtype) -> Memory | None:
    """Buffers [length] of zeros; None where the system has none such.

    The axis is of all ranks. Memory without a name, which is gone with the last rank however that ends, and isn't
    bounded by the size of /dev/shm, which is small in containers. Containers may share a network and a boot, and yet count
    processes apart, so that a path leads to another's file: device and inode tell whether it is the one that is meant.
    """
    buffers, files, memory = [], [], None
    with ExitStack() as closing:
        said = None
        with suppress(AttributeError, OSError):  # not on Linux, or out of memory
            mine = os.memfd_create("shoal")
            closing.callback(os.close, mine)
            os.ftruncate(mine, length * dtype.itemsize)
            said = f"/proc/{os.getpid()}/fd/{mine}", _identity(mine)
        for told in wire.gather_objects(said):
            with suppress(OSError, TypeError):  # another's processes are not for this one to look at; there is none
                path, identity = told
                file = os.open(path, os.O_RDWR)
                closing.callback(os.close, file)
                if _identity(file) == identity:
                    files.append(file)
                    buffers.append(torch.frombuffer(mmap.mmap(file, length * dtype.itemsize), dtype=dtype))
        able = False
        with suppress(OSError):  # there are no locks
            if len(buffers) == axis.size:
                memory = Memory(buffers, os.dup(files[0]))
                able = memory.take(axis.rank)
                memory.give_back()
        able = all(wire.gather_objects(able))  # also: all have mapped what the paths are of
    return memory if able else None


def _identity(number: int) -> tuple[int, int]:
    found = os.fstat(number)
    return found.st_dev, found.st_ino
