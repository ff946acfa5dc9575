"""Every byte that a rank sends goes through here, and is counted."""

import time
from typing import Any

from torch import Tensor, distributed

from shoal.core.errors import RankError
from shoal.parallel.heartbeat import StalledError
from shoal.parallel.world import World


class PeerLostError(RankError):
    """A collective failed because another rank is gone: that rank's own message says why."""


class Wire:
    """Collectives over all ranks, with the bytes handed to the network and the seconds spent waiting for it.

    Bytes are those of the ring algorithms (Patarasuk and Yuan 2009): an all-reduce of n bytes over N ranks sends
    2 n (N − 1) / N a rank.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.bytes_sent = 0
        self.seconds_waited = 0.0

    def start_sum(self, tensor: Tensor) -> Any:
        """Begin to sum `tensor` over all ranks in place; pass the result to `finish`. None when alone."""
        if self.world.size == 1:
            return None
        self._arrive()
        self.bytes_sent += 2 * tensor.nbytes * (self.world.size - 1) // self.world.size
        try:
            return distributed.all_reduce(tensor, async_op=True)
        except RuntimeError as error:
            raise self._lost(error) from error

    def finish(self, work: Any) -> None:
        """Wait until what was begun is done."""
        if work is None:
            return
        began = time.perf_counter()
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error
        self.seconds_waited += time.perf_counter() - began

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a small tensor over all ranks, in place."""
        self.finish(self.start_sum(tensor))
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Give every rank rank 0's values, in place."""
        if self.world.size > 1:
            self._arrive()
            self.bytes_sent += tensor.nbytes if self.world.is_main else 0
            try:
                distributed.broadcast(tensor, 0)
            except RuntimeError as error:
                raise self._lost(error) from error
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's small value, in the order of ranks; for set-up and checks, not for training."""
        if self.world.size == 1:
            return [value]
        self._arrive()
        values: list[Any] = [None] * self.world.size
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise self._lost(error) from error
        return values

    def at_step(self, step: int) -> None:
        """Tell the others which step this rank is at, for when it does not arrive."""
        if self.world.heartbeat is not None:
            self.world.heartbeat.at_step(step)

    def _arrive(self) -> None:
        if self.world.heartbeat is not None:
            self.world.heartbeat.arrive()

    def _lost(self, error: RuntimeError) -> PeerLostError | StalledError:
        stalled = self.world.heartbeat.find_stall() if self.world.heartbeat is not None else None
        return stalled or PeerLostError(
            f"rank {self.world.rank} lost contact with another rank ({str(error).splitlines()[0][:200]})"
        )
