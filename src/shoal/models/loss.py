"""The vocabulary's cross entropy without its logits.

At 4,096 tokens and 8,192 words, fp32 logits and their gradient are 268 MB; here they exist one chunk at a time (8 MB on a
CPU, which stays in its cache), and the chunk's gradient is formed while it is there, in place, so nothing is computed
twice. The idea is known from Liger (Hsu et al. 2024, arXiv:2410.10989) and Cut Cross-Entropy (Wijmans et al.
2024, arXiv:2411.09009).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""A target that does not count."""

CHUNK_BYTES, GPU_CHUNK_BYTES, COMPILED_CHUNK_BYTES = 8 << 20, 256 << 20, 1 << 30
"""Of fp32 logits. On a CPU what stays in its cache; a GPU needs work enough for each of its kernels, and where these are
compiled, most of the logits are not kept in fp32."""


@dataclass(frozen=True)
class Softening:
    """What is minimised instead of the plain cross entropy.

    `smoothing`: share ε of the target's probability that is spread over the vocabulary (Szegedy et al. 2016,
    arXiv:1512.00567), as torch's `label_smoothing`. `z`: weight of log² Z, Z the softmax's denominator, which keeps logits
    from drifting (PaLM, Chowdhery et al. 2022, arXiv:2204.02311).
    """

    smoothing: float = 0.0
    z: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.smoothing or self.z)


PLAIN = Softening()

Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Summed loss, and its gradients by hidden states, weight and bias, where they are wanted, and there is one."""

LossKernel = Callable[..., Gradients | None]
"""(hidden, weight, targets, whether gradients are wanted, `bias` by name, and, where they are softened, `smoothing` and `z`)
to `Gradients`, or None where it doesn't serve."""

Chunk = Callable[[Tensor, Tensor, bool, Softening], tuple[Tensor, Tensor | None]]
"""Logits [n, vocabulary], targets [n], whether the gradient is wanted, and the softening to the summed loss and the
gradient by the logits."""


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    kernel: LossKernel | None = None,
    bias_V: Tensor | None = None,
) -> Tensor:
    """Summed cross entropy of `hidden @ weight.T + bias` against targets (`IGNORED` ones don't count), an fp32 scalar.

    The sum, not the mean: the caller divides by the number of targets of the whole global batch. A `kernel` is asked first.
    """
    if not torch.is_grad_enabled():  # a Function is told that parameters need gradients even then
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, kernel)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, kernel: LossKernel | None
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        done = kernel(hidden_ND, weight_VD, targets_N, wanted, bias=bias_V) if kernel is not None else None
        loss, *gradients = done or by_chunks(hidden_ND, weight_VD, targets_N, wanted, bias=bias_V)
        if wanted:
            pairs = zip(gradients, (hidden_ND, weight_VD, bias_V), strict=True)
            ctx.save_for_backward(*(None if g is None or of is None else g.to(of.dtype) for g, of in pairs))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor | None, ...] = ctx.saved_tensors
        if gradient[0].device.type != "cpu" or gradient[0] != 1:  # 1 is how the training loop calls it
            gradients = tuple(None if its is None else its * gradient[0] for its in gradients)
        return *gradients, None, None


def softened(soft: Softening, kernel: LossKernel | None) -> LossKernel:
    """A `kernel` that softens what is minimised, but not what is only measured: an evaluation wants no gradients."""

    def loss_of(
        hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, wanted: bool, bias: Tensor | None = None
    ) -> Gradients:
        now, inputs = soft if wanted else PLAIN, (hidden_ND, weight_VD, targets_N, wanted)
        done = None if kernel is None else kernel(*inputs, bias=bias, smoothing=now.smoothing, z=now.z)
        return done or by_chunks(*inputs, now, bias)

    return loss_of


def rows_at_once(weight_VD: Tensor, compiled: bool = False) -> int:
    """How many tokens' logits exist at a time, by the projection and its device; on a GPU a power of two.

    Its matrix units want round numbers, and of the usual numbers of tokens nothing is left over, which would be compiled
    for itself.
    """
    if weight_VD.device.type == "cpu":
        return max(1, CHUNK_BYTES // (4 * len(weight_VD)))
    most = (COMPILED_CHUNK_BYTES if compiled else GPU_CHUNK_BYTES) // (4 * len(weight_VD))
    return 1 << (max(1, most).bit_length() - 1)


def chunked(of_chunk: Chunk) -> LossKernel:
    """As without a kernel, but each chunk of logits that is learnt from is left to `of_chunk`: a compiled one."""

    def loss_of(
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        wanted: bool,
        bias: Tensor | None = None,
        smoothing: float = 0.0,
        z: float = 0.0,
    ) -> Gradients:
        inputs = (hidden_ND, weight_VD, targets_N, wanted, Softening(smoothing, z), bias)
        return by_chunks(*inputs, of_chunk if wanted else None)  # evaluations are not compiled

    return loss_of


def by_chunks(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    wanted: bool,
    soft: Softening = PLAIN,
    bias: Tensor | None = None,
    of_chunk: Chunk | None = None,
) -> Gradients:
    """Loss, and where `wanted` its gradients, over chunks of logits."""
    computed = torch.get_autocast_dtype(hidden_ND.device.type) if _autocast(hidden_ND) else hidden_ND.dtype
    hidden, weight = hidden_ND.to(computed), weight_VD.to(computed)
    hidden_gradient = torch.empty_like(hidden) if wanted else None
    weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
    bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wanted and bias is not None else None
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    rows = rows_at_once(weight, compiled=of_chunk is not None)
    of_chunk = of_chunk or plain_chunk
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, hidden.shape[0], rows):
            chunk, targets = hidden[start : start + rows], targets_N[start : start + rows]
            logits = chunk @ weight.T if bias is None else torch.addmm(bias.to(computed), chunk, weight.T)
            its_loss, gradient = of_chunk(logits, targets, wanted, soft)
            loss += its_loss
            if hidden_gradient is None or weight_gradient is None or gradient is None:
                continue
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0, dtype=torch.float32)
            gradient = gradient.to(computed)
            torch.mm(gradient, weight, out=hidden_gradient[start : start + rows])
            if computed == torch.float32:
                weight_gradient.addmm_(gradient.T, chunk)
            elif hidden.device.type == "cuda" and computed != torch.float64:  # added up in fp32 by the product itself
                torch.addmm(weight_gradient, gradient.T, chunk, out_dtype=torch.float32, out=weight_gradient)
            else:
                weight_gradient += gradient.T @ chunk
    return loss, hidden_gradient, weight_gradient, bias_gradient


def plain_chunk(logits_NV: Tensor, targets_N: Tensor, wanted: bool, soft: Softening) -> tuple[Tensor, Tensor | None]:
    """One operation after the other, the gradient in fp32 in the memory of the log-probabilities."""
    log_probability_NV = F.log_softmax(logits_NV, dim=-1, dtype=torch.float32)
    loss = F.nll_loss(log_probability_NV, targets_N, reduction="sum", ignore_index=IGNORED)
    denominator_N = None
    if soft:
        denominator_N = logits_NV[:, 0].float() - log_probability_NV[:, 0]
        loss = loss + _softening(soft, log_probability_NV, denominator_N, targets_N)
    return loss, logit_gradient(log_probability_NV, targets_N, soft, denominator_N) if wanted else None


def fused_chunk(logits_NV: Tensor, targets_N: Tensor, wanted: bool, soft: Softening) -> tuple[Tensor, Tensor | None]:
    """The same for a compiler to fuse: no fp32 logits are kept, and the gradient is of the logits' own type."""
    wide_NV, kept_N1 = logits_NV.float(), (targets_N != IGNORED)[:, None]
    target_N1 = torch.where(kept_N1, targets_N[:, None], 0)
    denominator_N1 = wide_NV.logsumexp(1, keepdim=True)
    at_target_N1 = wide_NV.gather(1, target_N1)
    loss_N1 = denominator_N1 - at_target_N1
    if soft:
        loss_N1 = (
            loss_N1 + soft.smoothing * (at_target_N1 - wide_NV.mean(1, keepdim=True)) + soft.z * denominator_N1.square()
        )
    loss = torch.where(kept_N1, loss_N1, 0.0).sum()
    if not wanted:
        return loss, None
    gradient_NV = (wide_NV - denominator_N1).exp() * (1 + 2 * soft.z * denominator_N1) - soft.smoothing / wide_NV.shape[1]
    place_V = torch.arange(wide_NV.shape[1], device=wide_NV.device)
    gradient_NV = gradient_NV - torch.where(place_V == target_N1, 1.0 - soft.smoothing, 0.0)
    return loss, torch.where(kept_N1, gradient_NV, 0.0).to(logits_NV.dtype)


def _softening(soft: Softening, log_probability_NV: Tensor, denominator_N: Tensor, targets_N: Tensor) -> Tensor:
    """What softening adds to the summed cross entropy; `denominator` is log Z."""
    kept = targets_N != IGNORED
    target = log_probability_NV.gather(1, targets_N.where(kept, 0)[:, None])[:, 0]
    spread = soft.smoothing * (target - log_probability_NV.mean(1))
    return (spread + soft.z * denominator_N.square()).where(kept, 0).sum()


def logit_gradient(
    log_probability_NV: Tensor, targets_N: Tensor, soft: Softening = PLAIN, denominator_N: Tensor | None = None
) -> Tensor:
    """softmax − one-hot, in the memory of the log-probabilities; rows whose target is ignored are zero.

    Softened: softmax × (1 + 2 z log Z) − (1 − ε) one-hot − ε / V.
    """
    gradient = log_probability_NV.exp_()
    if denominator_N is not None:
        gradient *= (1 + 2 * soft.z * denominator_N)[:, None]
        gradient -= soft.smoothing / gradient.shape[1]
    kept = targets_N != IGNORED
    gradient[torch.arange(len(targets_N), device=targets_N.device), targets_N.where(kept, 0)] -= 1.0 - soft.smoothing
    if gradient.device.type != "cpu" or not kept.all():  # a GPU would have to be waited for
        gradient *= kept[:, None]
    return gradient


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
