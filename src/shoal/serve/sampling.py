"""From logits to tokens, for several texts at once: greedy, or drawn by temperature, top-k, top-p and min-p.

Whatever is left out is left out by a least weight, so one pass over the vocabulary serves all of them, and only what top-k
and top-p need is sorted. A token is drawn by one number between 0 and 1, where the sum of probabilities, in the vocabulary's
order, passes it: so a text needs one random number a token, and another rounding of the logits changes the token only where
that number falls within the rounding.

Shape suffixes: R rows (a text each), V vocabulary, C candidates.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from shoal.core.errors import InputError
from shoal.core.native import brief, pointer

FIRST_CANDIDATES = 256
"""So many of the likeliest tokens are sorted for top-p; eight times as many where that is too little, and so on."""
BLOCK = 256
"""Weights that are summed before a place among them is looked for."""
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-30, 1e30
"""What divides logits in fp32 without becoming zero, or infinite; below, as at it, the likeliest token is all that is left,
and above all are alike."""


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


def likeliest(logits_RV: Tensor) -> list[int]:
    """Each row's likeliest token; -1 where its largest logit is no finite number."""
    library = brief()
    if library is None or logits_RV.dtype != torch.float32 or logits_RV.stride(1) != 1:
        best_R, tokens_R = logits_RV.max(-1)
        return torch.where(best_R.isfinite(), tokens_R, -1).tolist()
    rows, vocabulary = logits_RV.shape
    tokens: Any = (ctypes.c_int32 * rows)()
    sizes = map(ctypes.c_int64, (rows, logits_RV.stride(0), vocabulary))
    library.likeliest(pointer(logits_RV), *sizes, tokens)
    return list(tokens)


def draw(logits_RV: Tensor, samplings: Sequence[Sampling], randoms: Sequence[torch.Generator]) -> list[int]:
    """A token for each row of logits, by its own sampling (but the penalty) and its own random stream."""
    tokens = logits_RV.argmax(-1).tolist()
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        rows_RV = logits_RV if len(drawn) == len(samplings) else logits_RV[drawn]
        chosen = _draw(rows_RV, [samplings[row] for row in drawn], [randoms[row] for row in drawn])
        for row, token in zip(drawn, chosen, strict=True):
            tokens[row] = token
    return tokens


def penalise(logits_V: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """The logits, with those of tokens that were seen made less likely by a `repetition_penalty`."""
    places, finite = torch.tensor(seen, device=logits_V.device), torch.finfo(logits_V.dtype)
    values, penalty = logits_V[places], min(max(penalty, finite.tiny), finite.max)
    changed = torch.where(values > 0, values / penalty, values * penalty)
    # an infinite logit less another is no number
    return logits_V.index_put((places,), changed.clamp(finite.min, finite.max))


def _draw(logits_RV: Tensor, samplings: Sequence[Sampling], randoms: Sequence[torch.Generator]) -> list[int]:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=logits_RV.dtype, device=logits_RV.device)[:, None]

    temperature_R1 = column([min(max(sampling.temperature, LEAST_TEMPERATURE), MOST_TEMPERATURE) for sampling in samplings])
    # from the top: no temperature is so low that it overflows; so the likeliest token's weight is 1
    weight_RV = logits_RV.sub(logits_RV.amax(-1, keepdim=True)).div_(temperature_R1).exp_()
    least_R1 = column([0.0] * len(samplings))
    if any(sampling.top_k for sampling in samplings):
        least_R1 = _least_of_top_k(weight_RV, [sampling.top_k for sampling in samplings])
    if any(sampling.top_p < 1 for sampling in samplings):
        least_R1 = _least_of_top_p(weight_RV, least_R1, column([sampling.top_p for sampling in samplings]))
    least_R1 = least_R1.maximum(column([sampling.min_p for sampling in samplings]))
    if bool(least_R1.any()):
        weight_RV = weight_RV.mul_(weight_RV >= least_R1)
    # above 0 and up to 1: so there is a token at which the sum reaches it, and none of the weight 0 is the first
    share_R = torch.stack([1 - torch.rand((), dtype=torch.float64, generator=random) for random in randoms])
    return _at(weight_RV, share_R.to(weight_RV.device)[:, None])


def _at(weight_RV: Tensor, share_R1: Tensor) -> list[int]:
    """Of each row, the place where the sum of weights first reaches a share of it all.

    First the block, then the place in it: sums of blocks take a tenth of the time of a running sum in fp64.
    """
    rows = len(weight_RV)
    weight_RNC = pad(weight_RV, (0, -weight_RV.shape[1] % BLOCK)).view(rows, -1, BLOCK)
    sum_RN = weight_RNC.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted_R1 = share_R1 * sum_RN[:, -1:]
    block_R1 = torch.searchsorted(sum_RN, wanted_R1)
    row_R = torch.arange(rows, device=weight_RV.device)
    within_RC = weight_RNC[row_R, block_R1[:, 0]].double()
    total_RC = within_RC.cumsum(-1) + pad(sum_RN, (1, 0)).gather(1, block_R1)
    # rounding could leave the last sum of a block just below what the block's own sum reached
    last_R1 = BLOCK - 1 - within_RC.flip(-1).gt(0).int().argmax(-1, keepdim=True)
    place_R1 = torch.searchsorted(total_RC, wanted_R1).minimum(last_R1)
    return (block_R1 * BLOCK + place_R1)[:, 0].tolist()


def _least_of_top_k(weight_RV: Tensor, top_k: Sequence[int]) -> Tensor:
    """The weight of each row's k-th likeliest; 0 where k is 0, or more than all."""
    vocabulary = weight_RV.shape[1]
    most = max((k for k in top_k if k < vocabulary), default=0)
    best_RC = weight_RV.topk(max(most, 1)).values
    least = [best_RC[row, k - 1] if 0 < k < vocabulary else best_RC.new_zeros(()) for row, k in enumerate(top_k)]
    return torch.stack(least)[:, None]


def _least_of_top_p(weight_RV: Tensor, least_R1: Tensor, top_p_R1: Tensor) -> Tensor:
    """The weight of the last token that less than `top_p` comes before, of those that weigh `least` or more."""
    vocabulary = weight_RV.shape[1]
    mass_R1 = weight_RV.mul(weight_RV >= least_R1).sum(-1, keepdim=True, dtype=torch.float64)
    narrow_R1 = top_p_R1 < 1
    candidates = min(FIRST_CANDIDATES, vocabulary)
    while True:
        best_RC = weight_RV.topk(candidates).values
        share_RC = best_RC.double() / mass_R1
        kept_RC = share_RC.cumsum(-1) - share_RC < top_p_R1
        if candidates == vocabulary or not bool((kept_RC[:, -1:] & narrow_R1).any()):
            last_R1 = best_RC.masked_fill(~kept_RC, torch.inf).amin(-1, keepdim=True)
            return torch.where(narrow_R1, last_R1.maximum(least_R1), least_R1)
        candidates = min(8 * candidates, vocabulary)
