"""The cross entropy of each token by itself, for losses that are not its sum, again without all of its logits.

The sum's gradient can be formed while its logits are there (`models.loss`). Here the weight of each token is known only
afterwards, so backward computes the logits again, a chunk at a time: one more product, and no memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.models.loss import logit_gradient, rows_at_once


def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The cross entropy [N] of `hidden @ weight.T` against each target, in fp32."""
    return _TokenLosses.apply(hidden_ND, weight_VD, targets_N, rows_at_once(weight_VD))


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, rows: int) -> Tensor:
        kind = hidden_ND.device.type
        computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.rows, ctx.computed = rows, computed
        weight = weight_VD.to(computed)
        losses = [
            F.nll_loss(_log_probabilities(hidden.to(computed), weight), targets, reduction="none")
            for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        ]
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        weight = weight_VD.to(ctx.computed)
        hidden_gradient = torch.empty_like(hidden_ND)
        weight_gradient = torch.zeros_like(weight_VD)
        for start in range(0, len(hidden_ND), ctx.rows):
            its = slice(start, start + ctx.rows)
            hidden, targets = hidden_ND[its].to(ctx.computed), targets_N[its]
            logits = logit_gradient(_log_probabilities(hidden, weight), targets) * gradient[0][its, None]
            logits = logits.to(ctx.computed)
            hidden_gradient[its] = logits @ weight
            weight_gradient += logits.T @ hidden
        return hidden_gradient, weight_gradient, None, None


def _log_probabilities(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return F.log_softmax(hidden_ND @ weight_VD.T, dim=-1, dtype=torch.float32)
