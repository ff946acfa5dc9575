"""The largest magnitudes of each chunk of 4,096 values alone, as SparseLoCo sends them (arXiv:2508.15706).

An index within a chunk takes 12 bits, a value 2: its sign, and which of the chunk's two magnitudes it has. These two are
those with the least squared error: the sorted magnitudes are split where that is least, and each part has its mean.
A single magnitude would have 3.2 times the error on the 64 largest of 4,096 normal values.
"""

import math

import torch
from torch import Tensor

from shoal.parallel.codecs.blocks import bf16_bytes, bf16_scales


class TopK:
    """14 bits a kept value and 32 a chunk, 0.227 a value at 1/64: the magnitudes in bf16, the indices, then the codes.

    `share` of the values is kept, at least one. Of equal magnitudes the first are taken.
    """

    block, native = 4096, "topk"

    def __init__(self, share: float) -> None:
        self.keep = max(1, round(share * self.block))
        self.codes = 4 + (3 * self.keep + 1) // 2
        self.record = self.codes + (self.keep + 3) // 4

    def pack(self, values: Tensor, last: int) -> Tensor:
        """Choose, split, and pack the bits."""
        finite = values.isfinite().all(1, keepdim=True)
        magnitudes = torch.where(finite, values.abs(), 0.0)
        chosen = magnitudes.sort(dim=1, descending=True, stable=True).indices[:, : self.keep].sort(dim=1).values
        kept = magnitudes.gather(1, chosen)
        high, levels = split(kept)
        levels = torch.where(finite, levels, math.nan)
        codes = torch.where(finite, values.gather(1, chosen).signbit() | (high.int() << 1), 0)
        first, second = _in_groups(chosen, 2)
        indices = torch.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], 2).flatten(1)
        quarters = [code << 2 * place for place, code in enumerate(_in_groups(codes, 4))]
        parts = [indices[:, : self.codes - 4], quarters[0] | quarters[1] | quarters[2] | quarters[3]]
        return torch.cat([bf16_bytes(levels), *(part.to(torch.uint8) for part in parts)], 1)

    def unpack(self, records: Tensor) -> Tensor:
        """Zeros, and at each index its magnitude with its sign."""
        levels = bf16_scales(records, 0, 2)
        first, middle, last = _in_groups(records[:, 4 : self.codes].int(), 3)
        indices = torch.stack([first | (middle & 15) << 8, middle >> 4 | last << 4], 2).flatten(1)[:, : self.keep].long()
        places = torch.arange(0, 8, 2, dtype=torch.int32, device=records.device)
        codes = (records[:, self.codes :, None].int() >> places).flatten(1)[:, : self.keep]
        magnitudes = torch.where(codes & 2 != 0, levels[:, 1:], levels[:, :1])
        decoded = (0 * levels[:, :1]).repeat(1, self.block)  # not a number where that is none
        return decoded.scatter_(1, indices, torch.where(codes & 1 != 0, -magnitudes, magnitudes))


def split(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the magnitudes [chunks, k] are the high ones, and the means of both parts [chunks, 2], low and high.

    Least squares is where the sums' squares over their counts are largest.
    """
    ordered = magnitudes.sort(dim=1, descending=True).values
    sums = ordered.double().cumsum(1)
    counts = torch.arange(1, sums.shape[1] + 1, dtype=torch.float64, device=sums.device)
    rests, others = sums[:, -1:] - sums, (sums.shape[1] - counts).clamp(min=1)
    best = (sums.square() / counts + rests.square() / others).argmax(1, keepdim=True)
    levels = torch.cat([(rests / others).gather(1, best), (sums / counts).gather(1, best)], 1)
    return magnitudes >= ordered.gather(1, best), levels.float()


def _in_groups(columns: Tensor, size: int) -> tuple[Tensor, ...]:
    """Columns 0, size, 2 size, ...; 1, size + 1, ...; and so on, with zeros for those missing at the end."""
    missing = -columns.shape[1] % size
    return torch.nn.functional.pad(columns, (0, missing)).unflatten(1, (-1, size)).unbind(2)
