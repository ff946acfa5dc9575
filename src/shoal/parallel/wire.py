"""Every byte that a rank sends goes through here, and is counted."""

import hashlib
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from shoal.core.errors import RankError
from shoal.parallel.heartbeat import StalledError
from shoal.parallel.mesh import Axis, own_channel
from shoal.parallel.throttle import Throttle
from shoal.parallel.world import World

MOST_TAGS = 1 << 20
"""How many exchanges may be under way before two are called the same."""

Stages = Generator[None, None, Any]
"""Work that pauses where other work may go on."""


class PeerLostError(RankError):
    """A collective failed because another rank is gone: that rank's own message says why."""


class Wire:
    """Collectives over the ranks of an axis (all, unless told), with the bytes handed to the network and the seconds waited.

    Bytes are those of the ring algorithms (Patarasuk and Yuan 2009), for tensors of n bytes on N ranks: a sum sends
    2 n (N − 1) / N a rank, a gather of N tensors n (N − 1), a scattered sum of N pieces of n bytes n (N − 1).
    `imagined`: the other ranks don't exist, and tensors have no values. `throttle`: a slower link than the real one.
    """

    def __init__(self, world: World, imagined: bool = False, throttle: Throttle | None = None) -> None:
        self.world, self.imagined, self.throttle = world, imagined, throttle
        self.everyone = Axis(world.size, world.rank)
        self.sent: Counter[str] = Counter()
        self.seconds_waited = 0.0
        self._lock = threading.Lock()
        self._exchanges: Counter[distributed.ProcessGroup | None] = Counter()
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
        return self._send_sum(tensor, axis, distributed.ReduceOp.SUM)

    def start_gather(self, whole: Tensor, mine: Tensor, axis: Axis) -> Any:
        """Begin to fill `whole` with every rank's `mine`, in the order of ranks."""
        count, others = mine.nbytes * (axis.size - 1), axis.size - 1
        if mine.device.type == "cpu" and not self.imagined:
            rows = whole.view(axis.size, -1)
            return self._send("all-gather", count, 1, lambda: self._exchange([mine.view(-1)] * axis.size, rows, axis))
        return self._send(
            "all-gather", count, others, lambda: distributed.all_gather_single(whole, mine, group=axis.group, async_op=True)
        )

    def start_scatter_sum(self, mine: Tensor, whole: Tensor, axis: Axis) -> Any:
        """Begin to fill `mine` with this rank's piece of the sum of all ranks' `whole`, which has a piece a rank.

        Gloo's own would send all to all; here each rank sends the others their pieces, and adds what it got by rank.
        """
        kind, count = "reduce-scatter", mine.nbytes * (axis.size - 1)
        if whole.device.type == "cuda":
            return self._send(
                kind,
                count,
                axis.size - 1,
                lambda: distributed.reduce_scatter_single(mine, whole, group=axis.group, async_op=True),
            )
        received = torch.empty_like(whole)
        work = self._send_pieces(kind, count, received, whole, axis)
        return _Added(work, received.view(axis.size, -1), mine)

    def start_all_to_all(self, received: Tensor, pieces: Tensor, axis: Axis) -> Any:
        """Begin to send `pieces` [ranks, n], one to each rank, and to fill `received` with those sent to this one."""
        return self._send_pieces("all-to-all", pieces.nbytes // axis.size * (axis.size - 1), received, pieces, axis)

    def start_exchange(self, received: Sequence[Tensor], pieces: Sequence[Tensor], axis: Axis) -> Any:
        """As `start_all_to_all`, of pieces that need not be equally long: one to each rank, and one from each."""
        count = sum(piece.nbytes for rank, piece in enumerate(pieces) if rank != axis.rank)
        if pieces[0].device.type == "cpu":
            return self._send("all-to-all", count, 1, lambda: self._exchange(pieces, received, axis))
        return self._send(
            "all-to-all",
            count,
            1,
            lambda: distributed.all_to_all(list(received), list(pieces), group=axis.group, async_op=True),
        )

    def own_channel(self, axis: Axis) -> Axis:
        """The same ranks, talking apart from what else they say; all of them must call it."""
        timeout = self.world.heartbeat.timeout if self.world.heartbeat is not None else 0.0
        return axis if self.imagined else own_channel(axis, timeout)

    def in_stages(self, stages: Stages) -> Any:
        """Let the wire's own thread do it, after what it was given before; pass the result to `finish`.

        At each `yield`, what else has been given goes on first: the link has something to do while this computes, and the
        other way round. How the stages of several calls mix differs between ranks, which must agree on the order of
        collectives in each channel: so those of different stages need different channels of their own (`own_channel`).

        A stage waits for what the one before began, and there may be three. With four, this rank could wait in the second
        stage of a call for another rank's first, which is behind the fourth of an earlier call there, which waits for the
        third of it here.
        """
        if self.imagined:  # values that don't exist, don't in this thread only
            for _ in stages:
                pass
            return None
        if self._background is None:
            self._background = _Background(self.world.device)
        return self._background.submit(stages)

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
            self.finish(self._send_sum(tensor, axis, distributed.ReduceOp.MAX))
        return tensor

    def count(self, kind: str, count: int) -> None:
        """So many bytes have been handed to the network, in collectives of a kind."""
        with self._lock:
            self.sent[kind] += count

    def count_sum(self, tensor: Tensor, axis: Axis) -> None:
        """What this rank sends for a sum, or a maximum, over an axis."""
        self.count("all-reduce", ring_bytes(tensor, axis))

    def exchange(self, tensor: Tensor, received: Tensor, partner: int) -> None:
        """Send `tensor` to another rank, which sends its own into `received`."""
        operations = [
            distributed.P2POp(distributed.irecv, received, partner),
            distributed.P2POp(distributed.isend, tensor, partner),
        ]
        self.finish(self._send("exchange", tensor.nbytes, 1, lambda: _All(distributed.batch_isend_irecv(operations), ())))

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Give every rank rank 0's values, in place; by a tree, in which a rank passes on what it has got."""
        if self.world.size > 1:
            rank, size = self.world.rank, self.world.size
            turns = range((size - 1).bit_length())
            sends = sum(rank < 2**turn and rank + 2**turn < size for turn in turns)
            self.finish(
                self._send(
                    "broadcast", sends * tensor.nbytes, len(turns), lambda: distributed.broadcast(tensor, 0, async_op=True)
                )
            )
        return tensor

    def make_equal(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank rank 0's values, in place, where they are not the same already: a digest travels before them.

        All of a model's weights would take 7 minutes at 1 Mbit/s, and ranks that drew them from one seed have them.
        """
        if self.world.size == 1:
            return
        tensors = list(tensors)
        everyone = self.gather_objects([digest(tensor) for tensor in tensors])
        for index, tensor in enumerate(tensors):
            if any(digests[index] != everyone[0][index] for digests in everyone):
                self.broadcast(tensor)

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's small value, in the order of ranks; for set-up and checks, not for training."""
        if self.world.size == 1:
            return [value]
        device, everyone = self.world.device, self.everyone
        mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(device)
        lengths = torch.empty(everyone.size, dtype=torch.int64, device=device)
        self.finish(self.start_gather(lengths, torch.tensor([len(mine)], device=device), everyone))
        longest = int(lengths.max())
        whole = torch.empty(everyone.size * longest, dtype=torch.uint8, device=device)
        self.finish(self.start_gather(whole, functional.pad(mine, (0, longest - len(mine))), everyone))
        rows = whole.cpu().view(everyone.size, -1)
        return [pickle.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths.tolist(), strict=True)]

    def at_step(self, step: int) -> None:
        """Tell the others which step this rank is at, for when it does not arrive."""
        if self.world.heartbeat is not None:
            self.world.heartbeat.at_step(step)

    def _send_sum(self, tensor: Tensor, axis: Axis, operation: Any) -> Any:
        return self._send(
            "all-reduce",
            ring_bytes(tensor, axis),
            2 * (axis.size - 1),
            lambda: distributed.all_reduce(tensor, operation, group=axis.group, async_op=True),
        )

    def _send_pieces(self, kind: str, count: int, received: Tensor, pieces: Tensor, axis: Axis) -> Any:
        """Each other rank gets its piece at once, so it is one message long."""
        if pieces.device.type == "cpu" and not self.imagined:
            rows = received.view(axis.size, -1)
            return self._send(kind, count, 1, lambda: self._exchange(pieces.view(axis.size, -1), rows, axis))
        return self._send(
            kind, count, 1, lambda: distributed.all_to_all_single(received, pieces, group=axis.group, async_op=True)
        )

    def _exchange(self, pieces: Tensor | Sequence[Tensor], received: Tensor | Sequence[Tensor], axis: Axis) -> "_All":
        """Send a piece to every rank, and get one from each, all at the same time; what is empty isn't sent.

        Gloo's own all-to-all and all-gather begin to send before they say that they are ready to receive; that word then
        waits behind what is sent, and a link carries one direction at a time: twice the seconds between two ranks.
        """
        with self._lock:
            self._exchanges[axis.group] += 1
            tag = self._exchanges[axis.group] % MOST_TAGS
        others = [(axis.rank + step) % axis.size for step in range(1, axis.size)]
        coming, going = ([other for other in others if its[other].numel()] for its in (received, pieces))
        works = [distributed.irecv(received[other], group=axis.group, group_src=other, tag=tag) for other in coming]
        works += [distributed.isend(pieces[other], group=axis.group, group_dst=other, tag=tag) for other in going]
        received[axis.rank].copy_(pieces[axis.rank])
        return _All(works, (pieces, received))

    def _send(self, kind: str, count: int, hops: int, enter: Callable[[], Any]) -> Any:
        """Begin a collective in which this rank sends `count` bytes, as `hops` messages that wait for each other."""
        self.count(kind, count)
        if self.world.heartbeat is not None:
            with self._lock:
                self.world.heartbeat.arrive()
        if self.throttle is not None:
            return self.throttle.send(count, hops, enter)
        return self._try(enter)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> PeerLostError | StalledError:
        stalled = self.world.heartbeat.find_stall() if self.world.heartbeat is not None else None
        text = str(error).splitlines()[0][:200]
        return stalled or PeerLostError(f"rank {self.world.rank} lost contact with another rank ({text})")


def ring_bytes(tensor: Tensor, axis: Axis) -> int:
    """What a rank sends for a sum over an axis."""
    return 2 * tensor.nbytes * (axis.size - 1) // axis.size


def digest(tensor: Tensor) -> bytes:
    """The same for the same values."""
    return hashlib.sha256(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data).digest()


class _Background:
    """A thread that does the next stage of one thing after the other, and ends with the process whatever it waits for."""

    def __init__(self, device: torch.device) -> None:
        self._waiting: SimpleQueue[tuple[Stages, Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._work, args=(device,), name="wire", daemon=True).start()

    def submit(self, stages: Stages) -> "_Promised":
        """Begin when all before has at least begun."""
        future: Future[Any] = Future()
        self._waiting.put((stages, future))
        return _Promised(future)

    @torch.no_grad()
    def _work(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        while True:
            stages, future = self._waiting.get()
            try:
                next(stages)
                self._waiting.put((stages, future))
            except StopIteration as end:
                future.set_result(end.value)
            except BaseException as error:
                future.set_exception(error)


class _Promised:
    """What the wire's thread does; waiting raises what it ran into."""

    def __init__(self, future: "Future[Any]") -> None:
        self.future = future

    def wait(self) -> None:
        self.future.result()


class _All:
    """Several works as one, and what must live until they are done."""

    def __init__(self, works: list[Any], tensors: Any) -> None:
        self.works, self.tensors = works, tensors

    def wait(self) -> None:
        for work in self.works:
            work.wait()


class _Added:
    """Pieces that are on their way, and are to be added up when they are there."""

    def __init__(self, work: Any, received: Tensor, result: Tensor) -> None:
        self.work, self.received, self.result = work, received, result

    def wait(self) -> None:
        self.work.wait()
        torch.sum(self.received, 0, out=self.result)
