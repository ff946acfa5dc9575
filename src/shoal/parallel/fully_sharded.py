"""ZeRO-2 and ZeRO-3 on torch's `fully_shard`, with collectives of our own so that gloo overlaps and every byte is counted.

Each unit (a block) gathers its weights before it computes and gives them back afterwards: after its forward pass (ZeRO-3)
or only after its backward pass (ZeRO-2, one gather a step instead of two). Its gradients leave as soon as its backward pass
is done: `ScatterSum` starts them on their way and returns at once, and `before_step` waits. torch's own would block a CPU
there. They may travel encoded, with error feedback.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
from torch.nn import functional

from shoal.parallel.coded_scatter import CodedScatter
from shoal.parallel.feedback import ChunkedFeedback
from shoal.parallel.mesh import Mesh
from shoal.parallel.shards import Box, Shards
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire


class FullySharded(Sync):
    """Parameters, gradients and optimizer state divided over the shard axis; sums of gradients added between replicas.

    `units`: modules that gather their weights one at a time, in the order of their use. `keep`: from forward to backward
    (ZeRO-2). `in_flight`: the type of gathered weights; gradients are summed in the weights' own. `coded`: what sums them
    where they travel encoded.
    """

    def __init__(
        self,
        wire: Wire,
        mesh: Mesh,
        units: Sequence[nn.Module],
        *,
        keep: bool,
        in_flight: torch.dtype | None = None,
        coded: CodedScatter | None = None,
    ) -> None:
        self.wire, self.mesh, self.units, self.keep, self.in_flight = wire, mesh, units, keep, in_flight
        self.coded = coded
        self.scatter_sums: list[ScatterSum] = []

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Divide the model; `shards` are then this rank's rows of each parameter, none where there are fewer than ranks."""
        assert self.mesh.devices is not None
        policy = MixedPrecisionPolicy(self.in_flight, torch.float32) if self.in_flight else MixedPrecisionPolicy()
        shapes = {name: shard.value.shape for name, shard in shards.items()}
        names = {shard.value: name for name, shard in shards.items()}
        model.register_forward_hook(_begin_backward_here)  # before torch's own, which watches what it gives
        for unit in (*self.units, model):
            feedback = None
            if self.coded and self.coded.feedback:
                its = {names[value]: value.shape for value in _in_torchs_order(unit) if value in names}
                feedback = ChunkedFeedback(its, self.mesh.shard.size, self.coded.multiple, next(unit.parameters()).device)
            self.scatter_sums.append(ScatterSum(self.wire, self.mesh, self.coded, feedback))
            fully_shard(
                unit,
                mesh=self.mesh.devices["shard"],
                mp_policy=policy,
                reshard_after_forward=unit is not model and not self.keep,
            )
        gather = Gather(self.wire, self.mesh)
        for unit, scatter_sum in zip((*self.units, model), self.scatter_sums, strict=True):
            assert isinstance(unit, FSDPModule)
            unit.set_custom_all_gather(gather)
            unit.set_custom_reduce_scatter(scatter_sum)
            unit.set_gradient_divide_factor(1.0)  # sums, not means
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_reduce_scatter_unused_params(
                True
            )  # a head that the task doesn't use has a gradient of zero, as elsewhere
        for unit, following in zip(self.units, self.units[1:], strict=False):
            assert isinstance(unit, FSDPModule) and isinstance(following, FSDPModule)
            unit.set_modules_to_forward_prefetch([following])
            if any(value.requires_grad for value in unit.parameters()):  # else backward needn't come so far
                following.set_modules_to_backward_prefetch([unit])
        assert isinstance(model, FSDPModule)
        self.model = model
        self.parameters: dict[str, Any] = {name: value for name, value in model.named_parameters() if name in shards}
        self.shards: Shards = {}
        for name, parameter in self.parameters.items():
            rows = shapes[name][0]
            each = -(-rows // self.mesh.shard.size)
            start, end = (min(edge * each, rows) for edge in (self.mesh.shard.rank, self.mesh.shard.rank + 1))
            box = Box.along(shapes[name], 0, start, end)
            value = nn.Parameter(parameter.to_local().detach())
            first = shards[name].first and self.mesh.replicate.rank == 0
            self.shards[name] = replace(shards[name], value=value, boxes=(*shards[name].boxes, box), first=first)

    def begin_backward(self, last: bool) -> None:
        """A forward and backward pass follow; gradients travel in the `last` of a step."""
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        self.model.set_reshard_after_backward(last or not self.keep)

    def before_step(self) -> None:
        """This rank's gradients are sums over all ranks when this returns."""
        between = []
        for scatter_sum in self.scatter_sums:
            scatter_sum.finish()
            if self.coded is None and scatter_sum.result is not None:
                between.append(self.wire.start_sum(scatter_sum.result, self.mesh.replicate))
        for work in between:
            self.wire.finish(work)
        for name, parameter in self.parameters.items():
            value = self.shards[name].value
            # none: the block was left out of this step, by all ranks; moments decay all the same
            value.grad = torch.zeros_like(value) if parameter.grad is None else parameter.grad.to_local()

    @torch.no_grad()
    def scale_grads(self, factor: float) -> None:
        """Multiply this rank's gradients."""
        if factor != 1.0:
            for scatter_sum in self.scatter_sums:
                if scatter_sum.result is not None:
                    scatter_sum.result.mul_(factor)

    def after_step(self) -> None:
        """Drop the gradients."""
        for scatter_sum in self.scatter_sums:
            scatter_sum.result = None
        for name, parameter in self.parameters.items():
            parameter.grad = self.shards[name].value.grad = None

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Inside, all units are gathered and stay so: as much memory as the model has."""
        for unit in (*self.units, self.model):
            assert isinstance(unit, FSDPModule)
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                assert isinstance(unit, FSDPModule)
                unit.set_reshard_after_forward(not self.keep, recurse=False)
            self._give_back()

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """Afterwards, what was gathered is old."""
        yield
        self._give_back()

    def _give_back(self) -> None:
        """What an evaluation has left gathered: only a backward pass does that."""
        for unit in (*self.units, self.model):
            assert isinstance(unit, FSDPModule)
            unit.reshard()

    def own_state(self) -> dict[str, Tensor]:
        """The feedback."""
        return {key: value for unit in self._feedbacks() for key, value in unit.state().items()}

    def load_own_state(self, states: list[Mapping[str, Tensor]]) -> None:
        """The feedback."""
        for unit in self._feedbacks():
            unit.load(states)

    def _feedbacks(self) -> Iterator[ChunkedFeedback]:
        return (unit.feedback for unit in self.scatter_sums if unit.feedback is not None)


def _begin_backward_here(model: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Let what a model gives have a gradient, though nothing below it is learnt: it tells torch that backward has begun."""
    return output if output.requires_grad or not torch.is_grad_enabled() else output.detach().requires_grad_()


def _in_torchs_order(unit: nn.Module) -> Iterator[nn.Parameter]:
    """A module's parameters as `fully_shard` lays them out: those of its children come before its own."""
    for child in unit.children():
        yield from _in_torchs_order(child)
    yield from unit.parameters(recurse=False)


class _Buffers:
    """Where torch's interface asks how communication buffers are made."""

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A fresh one."""
        return torch.empty(size, dtype=dtype, device=device)


class Gather(_Buffers, AllGather):
    """Weights on their way; torch waits for the work that this returns when it needs them."""

    def __init__(self, wire: Wire, mesh: Mesh) -> None:
        self.wire, self.mesh = wire, mesh

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Start to gather."""
        return _Timed(self.wire.finish, self.wire.start_gather(output_tensor, input_tensor, self.mesh.shard))


class ScatterSum(_Buffers, ReduceScatter):
    """A unit's gradients on their way, until `finish`; `result` then holds what this rank got."""

    def __init__(
        self, wire: Wire, mesh: Mesh, coded: CodedScatter | None = None, feedback: ChunkedFeedback | None = None
    ) -> None:
        self.wire, self.mesh, self.coded, self.feedback = wire, mesh, coded, feedback
        self.result: Tensor | None = None
        self._works: list[Any] = []

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> None:
        """Start to sum; torch only takes views of the output, which is filled later."""
        self.result = output_tensor
        if self.coded is None:
            self._works = [self.wire.start_scatter_sum(output_tensor, input_tensor, self.mesh.shard)]
            return
        values = input_tensor.view(self.mesh.shard.size, -1)
        if missing := -values.shape[1] % self.coded.multiple:
            values = functional.pad(values, (0, missing))
        self._works = self.coded.start(output_tensor, values, None if self.feedback is None else self.feedback.rows)

    def finish(self) -> None:
        """Wait for it."""
        for work in self._works:
            self.wire.finish(work)
        self._works = []
        if self.feedback is not None:
            self.feedback.clear_gaps()


class _Timed(distributed.Work):
    """Work for which a wait is a wait of the wire's."""

    def __init__(self, finish: Callable[[Any], None], work: Any) -> None:
        super().__init__()
        self._finish, self._work = finish, work

    def wait(self, timeout: Any = None) -> bool:
        """Wait, and count the seconds."""
        self._finish(self._work)
        return True
