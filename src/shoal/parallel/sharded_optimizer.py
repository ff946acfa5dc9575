"""ZeRO-1 (Rajbhandari et al. 2020, arXiv:1910.02054): each rank keeps optimizer state for, and updates, its share alone.

A bucket of gradients is cut into as many equal pieces as ranks shard; each rank gets the sum of its piece, and after the
step the ranks gather the changed weights. That moves as many bytes as an all-reduce, in the same buckets, without a copy:
the weights lie in a flat buffer as the gradients do. Pieces don't follow the borders of parameters: all are equally large.

Gradients may travel encoded. Weights do not: a rank updates its own from what it has, and all must compute with the same.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.parallel.buckets import Bucket, Buckets
from shoal.parallel.coded_scatter import CodedScatter
from shoal.parallel.feedback import Feedback, Place
from shoal.parallel.mesh import Mesh
from shoal.parallel.shards import Box, Shards, held_by_several
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire

ALIGNED = 16
"""Elements: pieces begin at whole cache lines."""


class ShardedOptimizer(Sync):
    """Gradients summed by pieces within the shard axis, then between replicas; weights gathered after the step.

    `coded`: what sums gradients where they travel encoded.
    """

    def __init__(self, wire: Wire, mesh: Mesh, bucket_bytes: int = 8 << 20, coded: CodedScatter | None = None) -> None:
        self.wire, self.mesh, self.coded = wire, mesh, coded
        self.bucket_bytes = bucket_bytes

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Lay weights and gradients out; `shards` are then this rank's pieces, empty ones too.

        Raises `ValueError` for parameters of mixed types.
        """
        axis = self.mesh.shard
        multiple = axis.size * (math.lcm(ALIGNED, self.coded.multiple) if self.coded else ALIGNED)
        values, apart = [shard.value for shard in shards.values()], held_by_several(shards) if self.coded else []
        self.gradients = Buckets(values, self.bucket_bytes, self._send, multiple, apart)
        self.weights = torch.zeros_like(self.gradients.flat)
        places = dict(zip(self.gradients.parameters, self.gradients.starts, strict=True))
        self.feedback = None
        if self.coded and self.coded.feedback:
            kept = [Place(name, shard.value.shape, places[shard.value]) for name, shard in shards.items()]
            self.feedback = Feedback(kept, len(self.gradients.flat), self.gradients.flat.device)
        self.shards: Shards = {}
        for name, shard in shards.items():
            start = places[shard.value]
            end = start + shard.value.numel()
            self.weights[start:end].copy_(shard.value.data.flatten())
            shard.value.data = self.weights[start:end].view_as(shard.value)
            low, high = self._mine(next(bucket for bucket in self.gradients.buckets if bucket.end >= end))
            low, high = (min(max(edge, start), end) for edge in (low, high))
            value = nn.Parameter(self.weights[low:high])
            value.grad = self.gradients.flat[low:high]
            box = Box.piece(shard.value.shape, low - start, high - start)
            self.shards[name] = replace(
                shard, value=value, boxes=(*shard.boxes, box), first=shard.first and self.mesh.replicate.rank == 0
            )

    def begin_backward(self, last: bool) -> None:
        """A backward pass follows; buckets travel during the `last` of a step."""
        self.gradients.begin_backward(last)

    def before_step(self) -> None:
        """This rank's pieces are sums over all ranks when this returns."""
        self.gradients.send_rest()
        between = []
        for bucket in self.gradients.buckets:
            for work in bucket.work:
                self.wire.finish(work)
            if self.coded is None:
                between.append(self.wire.start_sum(self._piece(self.gradients.flat, bucket), self.mesh.replicate))
        for work in between:
            self.wire.finish(work)
        if self.feedback is not None:
            self.feedback.clear_gaps()

    def scale_grads(self, factor: float) -> None:
        """Multiply this rank's pieces."""
        if factor != 1.0:
            for bucket in self.gradients.buckets:
                self._piece(self.gradients.flat, bucket).mul_(factor)

    def after_step(self) -> None:
        """Gather the changed weights, and clear the gradients meanwhile."""
        with torch.no_grad():
            works = [
                self.wire.start_gather(
                    self.weights[bucket.start : bucket.end], self._piece(self.weights, bucket).clone(), self.mesh.shard
                )
                for bucket in self.gradients.buckets
            ]
        self.gradients.flat.zero_()
        for work in works:
            self.wire.finish(work)

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """Afterwards, those of the others are to be had again."""
        yield
        self.after_step()

    def own_state(self) -> dict[str, Tensor]:
        """The feedback."""
        return {} if self.feedback is None else self.feedback.state()

    def load_own_state(self, states: list[Mapping[str, Tensor]]) -> None:
        """The feedback."""
        if self.feedback is not None:
            self.feedback.load(states)

    def _mine(self, bucket: Bucket) -> tuple[int, int]:
        length = (bucket.end - bucket.start) // self.mesh.shard.size
        start = bucket.start + self.mesh.shard.rank * length
        return start, start + length

    def _piece(self, flat: Tensor, bucket: Bucket) -> Tensor:
        start, end = self._mine(bucket)
        return flat[start:end]

    def _send(self, bucket: Bucket) -> list[Any]:
        mine, whole = self._piece(self.gradients.flat, bucket), self.gradients.flat[bucket.start : bucket.end]
        if self.coded is None:
            return [self.wire.start_scatter_sum(mine, whole, self.mesh.shard)]
        dropped = self.feedback.flat[bucket.start : bucket.end] if self.feedback is not None else None
        size = self.mesh.shard.size
        return self.coded.start(mine, whole.view(size, -1), None if dropped is None else dropped.view(size, -1))
