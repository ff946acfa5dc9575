"""Rotary positions (Su et al. 2021, arXiv:2104.09864)."""

import torch
from torch import Tensor


def rotary_table(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_dim / 2] of every position's angles, in fp32."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(x_BTHE: Tensor, cosine_TE: Tensor, sine_TE: Tensor) -> Tensor:
    """Turn each pair (i, i + E/2) by its position's angle: the half-split convention of Llama's weights.

    Angles are those of every row, [tokens, E/2], or of each row its own, [batch, tokens, E/2].
    """
    precise = x_BTHE if x_BTHE.dtype == torch.float64 else x_BTHE.float()
    first, second = precise.chunk(2, dim=-1)
    cosine, sine = cosine_TE.unsqueeze(-2), sine_TE.unsqueeze(-2)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).type_as(x_BTHE)
