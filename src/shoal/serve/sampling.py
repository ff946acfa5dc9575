"""From logits to tokens, for several texts at once: greedy, or drawn by temperature, top-k, top-p and min-p.

Whatever is left out is left out by a least logit, so one pass over the vocabulary serves all of them, and only what top-k
and top-p need is sorted. A token is drawn by one number between 0 and 1, where the sum of probabilities, in the vocabulary's
order, passes it: so a text needs one random number a token, and another rounding of the logits changes the token only where
that number falls within the rounding.

Shape suffixes: R rows (a text each), V vocabulary, C candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core.errors import InputError

FIRST_CANDIDATES = 256
"""So many of the likeliest tokens are sorted for top-p at first; all, where their probabilities are too little."""
LEAST_TEMPERATURE = 1e-30
"""What divides logits in fp32 without becoming zero; below, as at it, the likeliest token is all that is left."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; `InputError` for values outside their range.

    In this order: the penalty, temperature, top-k, top-p of what that leaves, min-p.
    """

    temperature: float = 0.8
    """0: always the likeliest token."""
    top_k: int = 0
    """Draw from the k likeliest only (0: all)."""
    top_p: float = 1.0
    """Draw from the likeliest that together have this probability (Holtzman et al. 2020, arXiv:1904.09751)."""
    min_p: float = 0.0
    """Draw from those that have this share of the likeliest's probability (Nguyen et al. 2024, arXiv:2407.01082)."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that the prompt or the text has already; negative ones are multiplied (Keskar et al.
    2019, arXiv:1909.05858)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; accepted: 0 or more")
        if self.top_k < 0:
            raise InputError(f"top-k is {self.top_k}; accepted: 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; accepted: above 0, up to 1")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min-p is {self.min_p}; accepted: from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(f"repetition penalty is {self.repetition_penalty}; accepted: above 0")


def draw(logits_RV: Tensor, samplings: Sequence[Sampling], randoms: Sequence[torch.Generator]) -> list[int]:
    """A token for each row of logits, by its own sampling (but the penalty) and its own random stream."""
    likeliest = logits_RV.argmax(-1).tolist()
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        rows_RV = logits_RV if len(drawn) == len(samplings) else logits_RV[drawn]
        chosen = _draw(rows_RV, [samplings[row] for row in drawn], [randoms[row] for row in drawn])
        for row, token in zip(drawn, chosen, strict=True):
            likeliest[row] = token
    return likeliest


def penalise(logits_V: Tensor, seen_V: Tensor, penalty: float) -> Tensor:
    """The logits, with those of tokens that were seen (bool) made less likely by a `repetition_penalty`."""
    return torch.where(seen_V, torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty), logits_V)


def _draw(logits_RV: Tensor, samplings: Sequence[Sampling], randoms: Sequence[torch.Generator]) -> list[int]:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=logits_RV.dtype, device=logits_RV.device)[:, None]

    temperature_R1 = column([max(sampling.temperature, LEAST_TEMPERATURE) for sampling in samplings])
    # from the top: no temperature is so low that it overflows
    scaled_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)) / temperature_R1
    if any(sampling.top_k for sampling in samplings):
        scaled_RV = _keep_top_k(scaled_RV, [sampling.top_k or scaled_RV.shape[1] for sampling in samplings])
    if any(sampling.top_p < 1 for sampling in samplings):
        scaled_RV = _keep_top_p(scaled_RV, column([sampling.top_p for sampling in samplings]))
    if any(sampling.min_p for sampling in samplings):
        scaled_RV = _keep(scaled_RV, column([math.log(sampling.min_p or math.ulp(0)) for sampling in samplings]))
    total_RV = scaled_RV.exp().cumsum(-1, dtype=torch.float64)
    # above 0 and up to 1: some token's sum is not below it, and that of none with the probability 0 is the first
    share_R = torch.stack([1 - torch.rand((), dtype=torch.float64, generator=random) for random in randoms])
    wanted_R1 = share_R.to(total_RV.device)[:, None] * total_RV[:, -1:]
    chosen: list[int] = torch.searchsorted(total_RV, wanted_R1)[:, 0].tolist()
    return chosen


def _keep(scaled_RV: Tensor, least_R1: Tensor) -> Tensor:
    return scaled_RV.masked_fill(scaled_RV < least_R1, -torch.inf)


def _keep_top_k(scaled_RV: Tensor, top_k: Sequence[int]) -> Tensor:
    """Those of each row that are as likely as its k-th; all where k is the vocabulary or more."""
    vocabulary = scaled_RV.shape[1]
    most = max((k for k in top_k if k < vocabulary), default=0)
    if not most:
        return scaled_RV
    best_RC = scaled_RV.topk(most).values
    edges = [best_RC[row, k - 1] if k < vocabulary else best_RC.new_tensor(-torch.inf) for row, k in enumerate(top_k)]
    return _keep(scaled_RV, torch.stack(edges)[:, None])


def _keep_top_p(scaled_RV: Tensor, top_p_R1: Tensor) -> Tensor:
    """The likeliest of each row that together have its probability: those that less than that comes before."""
    vocabulary = scaled_RV.shape[1]
    mass_R1 = scaled_RV.exp().sum(-1, keepdim=True, dtype=torch.float64)
    candidates = min(FIRST_CANDIDATES, vocabulary)
    while True:
        best_RC = scaled_RV.topk(candidates).values
        share_RC = best_RC.double().exp() / mass_R1
        before_RC = share_RC.cumsum(-1) - share_RC
        kept_RC = before_RC < top_p_R1
        if candidates == vocabulary or not bool((kept_RC[:, -1:] & (top_p_R1 < 1)).any()):
            least_R1 = best_RC.masked_fill(~kept_RC, torch.inf).amin(-1, keepdim=True)
            return _keep(scaled_RV, torch.where(top_p_R1 < 1, least_R1, -torch.inf))
        candidates = vocabulary
