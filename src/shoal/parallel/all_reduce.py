"""Plain synchronous data parallelism: gradients are summed over all ranks every step, while backward still runs."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.parallel.buckets import Bucket, Buckets
from shoal.parallel.mesh import Mesh
from shoal.parallel.shards import Shards
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire


class AllReduce(Sync):
    """Sums gradients over the data ranks in buckets of `bucket_bytes`; every one of them holds all of the model's state."""

    def __init__(self, wire: Wire, mesh: Mesh, bucket_bytes: int = 8 << 20) -> None:
        self.wire, self.mesh = wire, mesh
        self.bucket_bytes = bucket_bytes

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Lay the gradients out. Raises `ValueError` for mixed types."""
        first = self.mesh.data.rank == 0
        self.shards = {name: replace(shard, first=shard.first and first) for name, shard in shards.items()}
        values = [shard.value for shard in shards.values()]
        self.gradients = Buckets(values, self.bucket_bytes, self._send, memory=self._memory)

    def begin_backward(self, last: bool) -> None:
        """A backward pass follows; buckets travel during the `last` of a step."""
        self.gradients.begin_backward(last)

    def before_step(self) -> None:
        """Wait for all buckets."""
        self.gradients.send_rest()
        for bucket in self.gradients.buckets:
            self.wire.finish(bucket.work)

    def scale_grads(self, factor: float) -> None:
        """Multiply the flat buffer."""
        if factor != 1.0:
            self.gradients.flat.mul_(factor)

    def after_step(self) -> None:
        """Clear the gradients for the next step."""
        self.gradients.flat.zero_()

    def _memory(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(length, dtype=dtype, device=device)

    def _send(self, bucket: Bucket) -> Any:
        return self.wire.start_sum(self.gradients.flat[bucket.start : bucket.end], self.mesh.data)
