"""The two gradients of a weight that is both token embedding and output projection, apart.

Autograd adds them up, and has their sum at the end of backward. But the projection's, of all rows, is the first gradient of
backward, and the embedding's, the last, is of the few rows that were looked up. Who must send them wants to know.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class TakesTiedGradients(Protocol):
    """What gets a tied weight's gradients, which then don't arrive in its `.grad`."""

    def will_project(self) -> None:
        """The weight is used as output projection, perhaps not for the only time before backward."""
        ...

    def projected(self, gradient_VD: Tensor) -> None:
        """That of one use as output projection."""
        ...

    def looked_up(self, tokens_N: Tensor, gradient_ND: Tensor) -> None:
        """Those of rows of the embedding; tokens may come several times."""
        ...


def look_up(tokens: Tensor, weight_VD: Tensor, taker: TakesTiedGradients) -> Tensor:
    """The weight's rows [..., dim]."""
    rows: Tensor = _LookUp.apply(tokens, weight_VD, taker)
    return rows


def as_projection(weight_VD: Tensor, taker: TakesTiedGradients) -> Tensor:
    """The weight."""
    weight: Tensor = _AsProjection.apply(weight_VD, taker)
    return weight


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight_VD: Tensor, taker: TakesTiedGradients) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.taker = taker
        return F.embedding(tokens, weight_VD)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[None, ...]:
        (tokens,) = ctx.saved_tensors
        ctx.taker.looked_up(tokens.flatten(), gradient[0].flatten(0, -2))
        return None, None, None


class _AsProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, taker: TakesTiedGradients) -> Tensor:
        ctx.taker = taker
        taker.will_project()
        return weight_VD.view_as(weight_VD)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[None, ...]:
        ctx.taker.projected(gradient[0])
        return None, None
