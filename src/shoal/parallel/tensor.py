"""Tensor parallelism: the matrix products of a layer divided over ranks (Shoeybi et al. 2019, arXiv:1909.08053).

The first product of a pair is cut by columns of its output, the second by its input, so that nothing is exchanged between
them: one sum over the tensor ranks after each pair in the forward pass, one before it in the backward pass. Embedding and
loss are cut by the vocabulary. What is not cut (norms, positions) is held, and computed, by all tensor ranks alike.

The styles are for torch's `parallelize_module`. Their collectives go through the wire, where they are counted, as operators
that `torch.compile` does not look into.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn import functional as F

from shoal.parallel.mesh import Axis
from shoal.parallel.shards import Box, Shard, Shards
from shoal.parallel.wire import Wire

TALKING: dict[str, tuple[Wire, Axis]] = {}
"""Wire and axis by a name: an operator takes tensors and plain values only."""


@torch.library.custom_op("shoal::sum_over_ranks", mutates_args=())
def sum_over_ranks(x: Tensor, name: str) -> Tensor:
    """The sum over the ranks of an axis. Its gradient is each rank's own: all hold the same."""
    wire, axis = TALKING[name]
    return wire.sum(x.clone(memory_format=torch.contiguous_format), axis)


@sum_over_ranks.register_fake
def _(x: Tensor, name: str) -> Tensor:
    wire, axis = TALKING[name]
    if wire.imagined:  # this is all that is called then; a compiler that only looks must not count
        wire.count_sum(x, axis)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


sum_over_ranks.register_autograd(lambda ctx, gradient: (gradient, None), setup_context=lambda ctx, inputs, output: None)


class _Copy(torch.autograd.Function):
    """What all ranks hold alike, to be used by each in its own way: the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return sum_over_ranks(gradient[0], ctx.name), None


@dataclass
class TensorRanks:
    """The axis, and what has been cut over it: by parameter, its part."""

    wire: Wire
    axis: Axis
    parts: dict[nn.Parameter, Shard] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"tensor-{id(self.wire)}"
        TALKING[self.name] = (self.wire, self.axis)

    def cut(self, module: nn.Module, name: str, axis: int) -> int:
        """Keep this rank's equal part of a parameter along one of its axes, or what is nearest to equal; where it begins."""
        whole = getattr(module, name)
        start, end = (whole.shape[axis] * edge // self.axis.size for edge in (self.axis.rank, self.axis.rank + 1))
        mine = nn.Parameter(whole.data.narrow(axis, start, end - start).clone())
        self.parts[mine] = Shard(mine, whole.shape, (Box.along(whole.shape, axis, start, end),))
        setattr(module, name, mine)
        return start

    def shards(self, model: nn.Module) -> Shards:
        """Every parameter of a model that has been cut: what was not is the same on all tensor ranks."""
        alike = Shard(nn.Parameter(torch.empty(0)), torch.Size(), (), self.axis.size, self.axis.rank == 0)
        return {
            name: self.parts.get(parameter) or replace(alike, value=parameter, shape=parameter.shape)
            for name, parameter in model.named_parameters()
        }


class Pair(ParallelStyle):
    """Linear layers `first`, cut by their outputs, and `last`, cut by its inputs, of one module.

    The bias of `last` belongs to the first tensor rank, so that the sum adds it once.
    """

    def __init__(self, ranks: TensorRanks, first: Sequence[str], last: str) -> None:
        super().__init__()
        self.ranks, self.first, self.last = ranks, first, last

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        ranks = self.ranks
        for name in self.first:
            for parameter, _ in list(getattr(module, name).named_parameters()):
                ranks.cut(getattr(module, name), parameter, 0)
        last = getattr(module, self.last)
        ranks.cut(last, "weight", 1)
        if last.bias is not None:
            if ranks.axis.rank == 0:
                ranks.parts[last.bias] = Shard(last.bias, last.bias.shape)
            else:
                last.bias = None
        module.register_forward_pre_hook(lambda _, inputs: (_Copy.apply(inputs[0], ranks.name), *inputs[1:]))
        module.register_forward_hook(lambda _, inputs, output: sum_over_ranks(output, ranks.name))
        return module


class Alike(ParallelStyle):
    """An RMSNorm that each tensor rank applies to other heads: its weight's gradient is the sum of theirs."""

    def __init__(self, ranks: TensorRanks) -> None:
        super().__init__()
        self.ranks = ranks

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        assert isinstance(module, nn.RMSNorm), f"no tensor parallelism for {type(module).__name__} on heads"
        shape, epsilon, name = module.normalized_shape, module.eps, self.ranks.name

        def forward(x: Tensor) -> Tensor:
            return F.rms_norm(x, shape, _Copy.apply(module.weight, name), epsilon)

        module.forward = forward  # type: ignore[method-assign]
        return module


class Vocabulary(ParallelStyle):
    """An embedding, or an output projection, of which each rank holds some words."""

    def __init__(self, ranks: TensorRanks) -> None:
        super().__init__()
        self.ranks = ranks

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        start = self.ranks.cut(module, "weight", 0)
        if isinstance(module, nn.Embedding):
            module.forward = lambda input: self._embed(module.weight, input, start)  # type: ignore[method-assign]
        return module

    def _embed(self, weight: Tensor, tokens: Tensor, start: int) -> Tensor:
        mine = (tokens >= start) & (tokens < start + len(weight))
        found = F.embedding((tokens - start).where(mine, 0), weight)
        return sum_over_ranks(found * mine[..., None], self.ranks.name)


Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def vocabulary_cross_entropy(
    ranks: TensorRanks, start: int, vocabulary: int, ignored: int, chunk_bytes: int
) -> Callable[..., Gradients]:
    """A function for the summed cross entropy, and its gradients, of a projection of which this rank has rows from `start`.

    Chunks of tokens, whose logits take `chunk_bytes`: per chunk two small messages, the largest logits, and the sums of
    exponentials with the targets' logits. `smoothing` (of the target's probability, over all of the `vocabulary`) and `z`
    (times the squared logarithm of the softmax's denominator) may follow its tensors; the first adds the logits' sums. A
    bias is this rank's part of it.
    """

    def loss_of(
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        wanted: bool,
        bias: Tensor | None = None,
        smoothing: float = 0.0,
        z: float = 0.0,
    ) -> Gradients:
        kind = torch.get_autocast_dtype(hidden_ND.device.type) if _autocast(hidden_ND) else hidden_ND.dtype
        hidden, weight = hidden_ND.to(kind), weight_VD.to(kind)
        dhidden = torch.empty_like(hidden, dtype=torch.float32) if wanted else None
        dweight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        dbias = torch.zeros_like(bias, dtype=torch.float32) if wanted and bias is not None else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # equal on all ranks, though one may have a word more
        rows = max(1, chunk_bytes // (4 * -(-vocabulary // ranks.axis.size)))
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(hidden), rows):
                chunk, targets = hidden[first : first + rows], targets_N[first : first + rows]
                logits = (chunk @ weight.T if bias is None else torch.addmm(bias.to(kind), chunk, weight.T)).float()
                probability, loss_N = _chunk(ranks, logits, targets, start, vocabulary, smoothing, z)
                kept = targets != ignored
                loss += loss_N.where(kept, 0).sum()
                if dhidden is None or dweight is None:
                    continue
                gradient = probability.mul_(kept[:, None])
                if dbias is not None:
                    dbias += gradient.sum(0)
                gradient = gradient.to(kind)
                dhidden[first : first + rows] = gradient @ weight
                dweight += gradient.T @ chunk
        if dhidden is not None:
            ranks.wire.sum(dhidden, ranks.axis)
        return loss, dhidden, dweight, dbias

    return loss_of


def _chunk(
    ranks: TensorRanks, logits_NV: Tensor, targets_N: Tensor, start: int, vocabulary: int, smoothing: float, z: float
) -> tuple[Tensor, Tensor]:
    """(the gradient of this rank's logits, in their memory; loss of each token)."""
    mine = (targets_N >= start) & (targets_N < start + logits_NV.shape[1])
    places = (torch.arange(len(targets_N), device=targets_N.device), (targets_N - start).where(mine, 0))
    largest = ranks.wire.largest(logits_NV.amax(1), ranks.axis)
    logits_NV -= largest[:, None]
    summed = [logits_NV[places] * mine]
    if smoothing:
        summed.append(logits_NV.sum(1))
    probability = logits_NV.exp_()
    sums, targeted, *rest = ranks.wire.sum(torch.stack((probability.sum(1), *summed)), ranks.axis)
    log_sums = sums.log()
    loss = log_sums - targeted
    probability /= sums[:, None]
    if smoothing:
        loss += smoothing * (targeted - rest[0] / vocabulary)
    if z:
        log_z = log_sums + largest
        loss += z * log_z.square()
        probability *= (1 + 2 * z * log_z)[:, None]
    if smoothing:
        probability -= smoothing / vocabulary
    probability[places] -= mine.to(probability.dtype) * (1 - smoothing)
    return probability, loss


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
