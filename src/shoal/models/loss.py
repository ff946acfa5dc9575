"""The vocabulary's cross entropy without its logits.

At 4,096 tokens and 8,192 words, fp32 logits and their gradient are 268 MB; here they exist one chunk at a time (8 MB by
default, which stays in a CPU's cache), and the chunk's gradient is formed while it is there, in place, so nothing is
computed twice. The idea is known from Liger (Hsu et al. 2024, arXiv:2410.10989) and Cut Cross-Entropy (Wijmans et al.
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

CHUNK_BYTES = 8 << 20


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


def by_chunks(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    wanted: bool,
    soft: Softening = PLAIN,
    bias: Tensor | None = None,
) -> Gradients:
    """Loss, and where `wanted` its gradients, over chunks of `CHUNK_BYTES` of logits."""
    computed = torch.get_autocast_dtype(hidden_ND.device.type) if _autocast(hidden_ND) else hidden_ND.dtype
    hidden, weight = hidden_ND.to(computed), weight_VD.to(computed)
    hidden_gradient = torch.empty_like(hidden) if wanted else None
    weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
    bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wanted and bias is not None else None
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, hidden.shape[0], rows):
            chunk, targets = hidden[start : start + rows], targets_N[start : start + rows]
            logits = chunk @ weight.T if bias is None else torch.addmm(bias.to(computed), chunk, weight.T)
            log_probability = F.log_softmax(logits, dim=-1, dtype=torch.float32)
            loss += F.nll_loss(log_probability, targets, reduction="sum", ignore_index=IGNORED)
            denominator = None
            if soft:
                denominator = logits[:, 0].float() - log_probability[:, 0]
                loss += _softening(soft, log_probability, denominator, targets)
            if hidden_gradient is None or weight_gradient is None:
                continue
            gradient = logit_gradient(log_probability, targets, soft, denominator)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
            gradient = gradient.to(computed)
            torch.mm(gradient, weight, out=hidden_gradient[start : start + rows])
            if computed == torch.float32:
                weight_gradient.addmm_(gradient.T, chunk)
            else:
                weight_gradient += gradient.T @ chunk
    return loss, hidden_gradient, weight_gradient, bias_gradient


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
    if not kept.all():
        gradient *= kept[:, None]
    return gradient


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
