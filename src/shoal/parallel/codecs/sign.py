"""One bit a value, its sign, times the mean magnitude of its block (Seide et al. 2014; Bernstein et al. 2018).

The mean is the scale with the least squared error. Use it with error feedback: alone it does not converge (Karimireddy et
al. 2019, arXiv:1901.09847).
"""

import math

import torch
from torch import Tensor

from shoal.parallel.codecs.blocks import bf16_bytes, bf16_scales


class Sign:
    """1.0625 bits a value: a record is the scale in bf16, then the signs, the first value's in the lowest bit."""

    block, record, native, keep = 256, 34, "sign", 0

    def pack(self, values: Tensor, last: int) -> Tensor:
        """Sums by halves: the same bits on any device, and eight times as exact as one after the other."""
        sums = values.abs()
        while sums.shape[1] > 1:
            low, high = sums.chunk(2, dim=1)
            sums = low + high
        counts = torch.full_like(sums, self.block)
        counts[-1] = last
        scales = torch.where(values.isfinite().all(1, keepdim=True), sums / counts, math.nan)
        bits = values.signbit().view(len(values), -1, 8) * _places(values)
        return torch.cat([bf16_bytes(scales), bits.sum(2, dtype=torch.uint8)], 1)

    def unpack(self, records: Tensor) -> Tensor:
        """Plus or minus the scale."""
        negative = (records[:, 2:, None] & _places(records)).flatten(1) != 0
        scales = bf16_scales(records, 0, 1)
        return torch.where(negative, -scales, scales)


def _places(like: Tensor) -> Tensor:
    return 1 << torch.arange(8, dtype=torch.uint8, device=like.device)
