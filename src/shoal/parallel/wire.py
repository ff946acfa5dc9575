"""Every byte that a rank sends goes through here, and is counted."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, distributed

from shoal.core.errors import RankError
from shoal.parallel.heartbeat import StalledError
from shoal.parallel.mesh import Axis
from shoal.parallel.world import World


class PeerLostError(RankError):
    """A collective failed because another rank is gone: that rank's own message says why."""


class Wire:
    """Collectives over the ranks of an axis (all, unless told), with the bytes handed to the network and the seconds waited.

    Bytes are those of the ring algorithms (Patarasuk and Yuan 2009), for tensors of n bytes on N ranks: a sum sends
    2 n (N − 1) / N a rank, a gather of N tensors n (N − 1), a scattered sum of N pieces of n bytes n (N − 1).
    `imagined`: the other ranks don't exist, and tensors have no values.
    """

    def __init__(self, world: World, imagined: bool = False) -> None:
        self.world, self.imagined = world, imagined
        self.everyone = Axis(world.size, world.rank)
        self.sent: Counter[str] = Counter()
        self.seconds_waited = 0.0
        self._lock = threading.Lock()
        self._background: _Background | None = None

    @property
    def bytes_sent(self) -> int:
        """All bytes that this rank has sent."""
        return self.sent.total()

    def start_sum(self, tensor: Tensor, axis: Axis | None = None) -> Any:
        """Begin to sum `tensor` in place; pass the result to `finish`. None when alone."""
        axis = axis or self.everyone
        if axis.size == 1:
            return None
        self.count_sum(tensor, axis)
        return self._enter(lambda: distributed.all_reduce(tensor, group=axis.group, async_op=True))

    def start_gather(self, whole: Tensor, mine: Tensor, axis: Axis) -> Any:
        """Begin to fill `whole` with every rank's `mine`, in the order of ranks."""
        self._count("all-gather", mine.nbytes * (axis.size - 1))
        return self._enter(lambda: distributed.all_gather_single(whole, mine, group=axis.group, async_op=True))

    def start_scatter_sum(self, mine: Tensor, whole: Tensor, axis: Axis) -> Any:
        """Begin to fill `mine` with this rank's piece of the sum of all ranks' `whole`, which has a piece a rank.

        Gloo's own would send all to all; here each rank sends the others their pieces, and adds what it got by rank.
        """
        self._count("reduce-scatter", mine.nbytes * (axis.size - 1))
        if whole.device.type == "cuda":
            return self._enter(lambda: distributed.reduce_scatter_single(mine, whole, group=axis.group, async_op=True))
        received = torch.empty_like(whole)
        work = self._enter(lambda: distributed.all_to_all_single(received, whole, group=axis.group, async_op=True))
        return _Added(work, received.view(axis.size, -1), mine)

    def start_all_to_all(self, received: Tensor, pieces: Tensor, axis: Axis) -> Any:
        """Begin to send `pieces` [ranks, n], one to each rank, and to fill `received` with those sent to this one."""
        self._count("all-to-all", pieces.nbytes // axis.size * (axis.size - 1))
        return self._enter(lambda: distributed.all_to_all_single(received, pieces, group=axis.group, async_op=True))

    def in_background(self, call: Callable[[], Any]) -> Any:
        """Let the wire's own thread do it, after what it was given before; pass the result to `finish`.

        Collectives in there need a channel of their own (`own_channel`): ranks must agree on the order in each.
        """
        if self.imagined:  # values that don't exist, don't in this thread only
            call()
            return None
        if self._background is None:
            self._background = _Background(self.world.device)
        return self._background.submit(call)

    def wait(self, work: Any) -> None:
        """As `finish`, in the background: nobody's time is lost."""
        if work is not None:
            self._try(work.wait)

    def finish(self, work: Any) -> None:
        """Wait until what was begun is done."""
        if work is None:
            return
        began = time.perf_counter()
        self._try(work.wait)
        self.seconds_waited += time.perf_counter() - began

    def sum(self, tensor: Tensor, axis: Axis | None = None) -> Tensor:
        """Sum a small tensor, in place."""
        self.finish(self.start_sum(tensor, axis))
        return tensor

    def largest(self, tensor: Tensor, axis: Axis) -> Tensor:
        """The elementwise maximum over an axis, in place."""
        if axis.size > 1:
            self.count_sum(tensor, axis)
            maximum = distributed.ReduceOp.MAX
            self.finish(self._enter(lambda: distributed.all_reduce(tensor, maximum, group=axis.group, async_op=True)))
        return tensor

    def count_sum(self, tensor: Tensor, axis: Axis) -> None:
        """What this rank sends for a sum, or a maximum, over an axis."""
        self._count("all-reduce", 2 * tensor.nbytes * (axis.size - 1) // axis.size)

    def exchange(self, tensor: Tensor, received: Tensor, partner: int) -> None:
        """Send `tensor` to another rank, which sends its own into `received`."""
        self._count("exchange", tensor.nbytes)
        operations = [
            distributed.P2POp(distributed.isend, tensor, partner),
            distributed.P2POp(distributed.irecv, received, partner),
        ]
        for work in self._enter(lambda: distributed.batch_isend_irecv(operations)):
            self.finish(work)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Give every rank rank 0's values, in place."""
        if self.world.size > 1:
            self._count("broadcast", tensor.nbytes if self.world.is_main else 0)
            self._enter(lambda: distributed.broadcast(tensor, 0))
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's small value, in the order of ranks; for set-up and checks, not for training."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * self.world.size
        self._enter(lambda: distributed.all_gather_object(values, value))
        return values

    def at_step(self, step: int) -> None:
        """Tell the others which step this rank is at, for when it does not arrive."""
        if self.world.heartbeat is not None:
            self.world.heartbeat.at_step(step)

    def count(self, kind: str, count: int) -> None:
        """Bytes that this rank moves by other means than collectives."""
        self._count(kind, count)

    def _count(self, kind: str, count: int) -> None:
        with self._lock:
            self.sent[kind] += count

    def _enter(self, call: Callable[[], Any]) -> Any:
        """Call a collective."""
        if self.world.heartbeat is not None:
            with self._lock:
                self.world.heartbeat.arrive()
        return self._try(call)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> PeerLostError | StalledError:
        stalled = self.world.heartbeat.find_stall() if self.world.heartbeat is not None else None
        text = str(error).splitlines()[0][:200]
        return stalled or PeerLostError(f"rank {self.world.rank} lost contact with another rank ({text})")


class _Background:
    """A thread that does one thing after the other, and ends with the process whatever it waits for."""

    def __init__(self, device: torch.device) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._work, args=(device,), name="wire", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> "_Promised":
        """Do it when all before is done."""
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return _Promised(future)

    @torch.no_grad()
    def _work(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


class _Promised:
    """What the wire's thread does; waiting raises what it ran into."""

    def __init__(self, future: "Future[Any]") -> None:
        self.future = future

    def wait(self) -> None:
        self.future.result()


class _Added:
    """Pieces that are on their way, and are to be added up when they are there."""

    def __init__(self, work: Any, received: Tensor, result: Tensor) -> None:
        self.work, self.received, self.result = work, received, result

    def wait(self) -> None:
        self.work.wait()
        torch.sum(self.received, 0, out=self.result)
