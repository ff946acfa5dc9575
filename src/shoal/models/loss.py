"""The vocabulary's cross entropy without its logits.

At 4,096 tokens and 8,192 words, fp32 logits and their gradient are 268 MB; here they exist one chunk at a time (8 MB by
default, which stays in a CPU's cache), and the chunk's gradient is formed while it is there, in place, so nothing is
computed twice. The idea is known from Liger (Hsu et al. 2024, arXiv:2410.10989) and Cut Cross-Entropy (Wijmans et al.
2024, arXiv:2411.09009).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""A target that does not count."""

CHUNK_BYTES = 8 << 20
BIAS_COLUMNS = 16


Gradients = tuple[Tensor, Tensor | None, Tensor | None]
LossKernel = Callable[[Tensor, Tensor, Tensor, bool], Gradients | None]
"""(hidden, weight, targets, whether gradients are wanted) to (summed loss, gradients of hidden and weight), or None where it
doesn't serve."""


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
    hidden_ND, weight_VD = with_bias(hidden_ND, weight_VD, bias_V)
    if not torch.is_grad_enabled():  # a Function is told that parameters need gradients even then
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, kernel)


def with_bias(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor]:
    """Hidden states and weight such that `hidden @ weight.T` has the bias in it.

    A bias is one more column of the weight, for hidden states that end in 1, filled up to what vector units like.
    """
    if bias_V is None:
        return hidden_ND, weight_VD
    one = hidden_ND.new_zeros(hidden_ND.shape[0], BIAS_COLUMNS)
    one[:, 0] = 1.0
    padded = F.pad(bias_V[:, None], (0, BIAS_COLUMNS - 1))
    return torch.cat((hidden_ND, one), dim=1), torch.cat((weight_VD, padded), dim=1)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, kernel: LossKernel | None) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        done = kernel(hidden_ND, weight_VD, targets_N, wanted) if kernel is not None else None
        loss, hidden_gradient, weight_gradient = done or by_chunks(hidden_ND, weight_VD, targets_N, wanted)
        if hidden_gradient is not None and weight_gradient is not None:
            ctx.save_for_backward(hidden_gradient.to(hidden_ND.dtype), weight_gradient.to(weight_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        if gradient[0].device.type == "cpu" and gradient[0] == 1:  # as the training loop calls it
            return hidden_gradient, weight_gradient, None, None
        return hidden_gradient * gradient[0], weight_gradient * gradient[0], None, None


def by_chunks(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, wanted: bool) -> Gradients:
    """Loss, and where `wanted` its gradients, over chunks of `CHUNK_BYTES` of logits."""
    computed = torch.get_autocast_dtype(hidden_ND.device.type) if _autocast(hidden_ND) else hidden_ND.dtype
    hidden, weight = hidden_ND.to(computed), weight_VD.to(computed)
    hidden_gradient = torch.empty_like(hidden) if wanted else None
    weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, hidden.shape[0], rows):
            chunk, targets = hidden[start : start + rows], targets_N[start : start + rows]
            log_probability = F.log_softmax(chunk @ weight.T, dim=-1, dtype=torch.float32)
            loss += F.nll_loss(log_probability, targets, reduction="sum", ignore_index=IGNORED)
            if hidden_gradient is None or weight_gradient is None:
                continue
            gradient = logit_gradient(log_probability, targets).to(computed)
            torch.mm(gradient, weight, out=hidden_gradient[start : start + rows])
            if computed == torch.float32:
                weight_gradient.addmm_(gradient.T, chunk)
            else:
                weight_gradient += gradient.T @ chunk
    return loss, hidden_gradient, weight_gradient


def logit_gradient(log_probability_NV: Tensor, targets_N: Tensor) -> Tensor:
    """softmax − one-hot, in the memory of the log-probabilities; rows whose target is ignored are zero."""
    gradient = log_probability_NV.exp_()
    kept = targets_N != IGNORED
    gradient[torch.arange(len(targets_N), device=targets_N.device), targets_N.where(kept, 0)] -= 1.0
    if not kept.all():
        gradient *= kept[:, None]
    return gradient


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
