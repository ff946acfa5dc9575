"""Data parallelism over slow links: gradients are summed every step, encoded, while backward still runs.

As `AllReduce`, but what travels is encoded (`parallel.coded_sum`), in fp32 with error feedback: what the codec drops of this
step's gradients is added to the next one's, before they are clipped (`parallel.feedback`).

The last gradient of backward is that of the embedding, which is also the largest: 3.1M of 13.9M values in the model that
Shoal is measured with. Nothing is computed while it travels. Where it is the output projection as well, and a step reads few
of its rows, its two gradients are kept apart (`models.tied`): the projection's, the first of backward, travels while all
else is computed, and at the end the few rows' alone (`parallel.looked_up`). Elsewhere what counts is that neither the link
nor the encoder waits for the other. Hence messages are short: a parameter larger than a bucket is cut into several, of
which one is encoded while those before it are on the link. Short buckets also let the first block's gradients leave before
the embedding's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from shoal.parallel.buckets import Bucket, Buckets
from shoal.parallel.coded_sum import MESSAGE_BYTES, Sums
from shoal.parallel.feedback import Feedback, Place, load_dropped
from shoal.parallel.looked_up import LookedUp
from shoal.parallel.mesh import Mesh
from shoal.parallel.momentum import Momentum
from shoal.parallel.shards import Shards, held_by_several
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire

MakeSums = Callable[[Sequence[Place]], Sums]


class CodedAllReduce(Sync):
    """Sums gradients over the data ranks; every one of them holds all of the model's state.

    `make_sums` is told what lies in a bucket, of `bucket_bytes` or a parameter's more; `whole`: its sums must get all of it
    at once. `feedback`: whether what is dropped comes back. `momentum`: what travels instead of gradients in 1-bit Adam.
    `rows`: for a model whose embedding is its output projection, and whose `tied_gradients` this gets.
    """

    def __init__(
        self,
        wire: Wire,
        mesh: Mesh,
        make_sums: MakeSums,
        bucket_bytes: int = MESSAGE_BYTES,
        whole: bool = False,
        feedback: bool = True,
        momentum: Momentum | None = None,
        rows: LookedUp | None = None,
    ) -> None:
        self.wire, self.mesh, self.make_sums, self.with_feedback, self.rows = wire, mesh, make_sums, feedback, rows
        self.bucket_bytes, self.whole, self.momentum = bucket_bytes, whole, momentum
        self._projections = 0

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Lay the gradients out. Raises `ValueError` for mixed types."""
        first = self.mesh.data.rank == 0
        self.shards = {name: replace(shard, first=shard.first and first) for name, shard in shards.items()}
        multiple = self.make_sums([]).multiple
        values, apart = [shard.value for shard in shards.values()], held_by_several(shards)
        early = [] if self.rows is None else [self.rows.table]
        self.gradients = Buckets(values, self.bucket_bytes, self._send, multiple, apart, early)
        message = max(1, self.bucket_bytes // self.gradients.flat.itemsize // multiple) * multiple
        self.message = len(self.gradients.flat) if self.whole else message
        starts = dict(zip(self.gradients.parameters, self.gradients.starts, strict=True))
        self.places = [Place(name, shard.value.shape, starts[shard.value]) for name, shard in shards.items()]
        self.sums: dict[Bucket, Sums] = {}
        for bucket in self.gradients.buckets:
            inside = [place for place in self.places if bucket.start <= place.offset < bucket.end]
            self.sums[bucket] = self.make_sums([replace(place, offset=place.offset - bucket.start) for place in inside])
        flat = self.gradients.flat
        if self.momentum is not None:
            self.momentum.lie_as(self.places, flat)
        kept = self.with_feedback and self.mesh.data.size > 1
        self.feedback = Feedback(self.places, len(flat), flat.device) if kept else None

    def begin_backward(self, last: bool) -> None:
        """A backward pass follows; buckets travel during the `last` of a step."""
        self._projections = 0
        self.gradients.begin_backward(last)

    def before_step(self) -> None:
        """Wait for all messages."""
        self.gradients.send_rest()
        buckets, travelling = iter(self.gradients.buckets), None
        if self.rows is not None:
            if self.gradients.flat.device.type != "cpu":
                # a device waits for both threads' messages in one order, which must be the same on all ranks
                for bucket in self.gradients.buckets:
                    self._finish(bucket)
            self.rows.tell()
            self._finish(next(buckets))  # which holds the table, whose feedback it has changed
            table = self.rows.table
            kept = None if self.feedback is None else self.feedback.flat[: table.numel()].view_as(table)
            travelling = self.rows.send(kept)
        for bucket in buckets:
            self._finish(bucket)
        if self.rows is not None and travelling is not None:
            self.rows.add(travelling)
        if self.feedback is not None:
            self.feedback.clear_gaps()

    def will_project(self) -> None:
        """The table is used as output projection: its gradient may not travel before that has one."""
        self._projections += 1

    def projected(self, gradient_VD: Tensor) -> None:
        """The table's gradient by one use as output projection; after the last of them all but its rows' may travel."""
        assert self.rows is not None and self.rows.table.grad is not None
        self.rows.table.grad += gradient_VD
        self._projections -= 1
        if not self._projections:
            self.gradients.arrived(self.rows.table)

    def looked_up(self, tokens_N: Tensor, gradient_ND: Tensor) -> None:
        """The gradients of the table's rows."""
        assert self.rows is not None
        self.rows.keep(tokens_N, gradient_ND)

    def scale_grads(self, factor: float) -> None:
        """Multiply the flat buffer: a step will be taken."""
        if self.momentum is not None:
            self.momentum.keep(self.gradients.flat)
        if factor != 1.0:
            self.gradients.flat.mul_(factor)

    def after_step(self) -> None:
        """Clear the gradients for the next step."""
        self.gradients.flat.zero_()

    def detach(self) -> None:
        """Let go of the model: its gradients go nowhere any more."""
        self.gradients.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """What sums leave to those of the next step, by `parameter name/warm`, and the momentum."""
        momentum = {} if self.momentum is None else self.momentum.state_dict()
        warm = {f"{name}/warm": value for sums in self.sums.values() for name, value in sums.state_dict().items()}
        return {**momentum, **warm}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it up."""
        warm = {key.removesuffix("/warm"): value for key, value in state.items() if key.endswith("/warm")}
        for sums in self.sums.values():
            sums.load_state_dict(warm)
        if self.momentum is not None:
            self.momentum.load_state_dict(state)

    def own_state(self) -> dict[str, Tensor]:
        """The feedback."""
        return {} if self.feedback is None else self.feedback.state()

    def load_own_state(self, states: list[Mapping[str, Tensor]]) -> None:
        """The feedback; where none is kept, as when one rank goes on alone, it enters the next step's gradients."""
        if self.feedback is None:
            load_dropped(self.places, self.gradients.flat, states)
        else:
            self.feedback.load(states)

    def _finish(self, bucket: Bucket) -> None:
        for work in bucket.work:
            self.wire.finish(work)

    def _send(self, bucket: Bucket) -> Any:
        if self.momentum is not None:
            if not self.momentum.travels:
                return [self.wire.start_sum(self.gradients.flat[bucket.start : bucket.end], self.mesh.data)]
            self.momentum.enter(self.gradients.flat[bucket.start : bucket.end], bucket.start, bucket.end)
        works = []
        for start in range(bucket.start, bucket.end, self.message):
            end = min(start + self.message, bucket.end)
            dropped = None if self.feedback is None else self.feedback.flat[start:end]
            works.append(self.sums[bucket].start(self.gradients.flat[start:end], dropped))
        return works
