"""From logits to a token: greedy, or drawn by temperature, top-k and top-p."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; `InputError` for values outside their range."""

    temperature: float = 0.8
    """0: always the likeliest token."""
    top_k: int = 0
    """Draw from the k likeliest only (0: all)."""
    top_p: float = 1.0
    """Draw from the likeliest that together have this probability (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; accepted: 0 or more")
        if self.top_k < 0:
            raise InputError(f"top-k is {self.top_k}; accepted: 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; accepted: above 0, up to 1")


def draw(logits_V: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """One token from the logits [vocabulary] of the next position."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    # from the top, in float64: no temperature is so low that it overflows
    logits = (logits_V.double() - logits_V.max()) / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.where(logits >= logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
        logits[order[before >= sampling.top_p]] = -torch.inf
    return int(torch.multinomial(logits.softmax(0), 1, generator=random))
