"""One bit a value, its sign, times the mean magnitude of its block (Seide et al. 2014; Bernstein et al. 2018).

The mean is the scale with the least squared error. Use it with error feedback: alone it does not converge (Karimireddy et
al. 2019, arXiv:1901.09847).
"""

import math

import torch
from torch import Tensor

from shoal.parallel.codecs.blocks import bf16_bytes, bf16_scales, pack_flags, sum_by_halves, unpack_flags


class Sign:
    """1.0625 bits a value: a record is the scale in bf16, then the signs, the first value's in the lowest bit."""

    block, record, native, keep = 256, 34, "sign", 0

    def pack(self, values: Tensor, last: int) -> Tensor:
        """The mean is of the values that there are."""
        counts = torch.full_like(values[:, :1], self.block)
        counts[-1] = last
        scales = torch.where(values.isfinite().all(1, keepdim=True), sum_by_halves(values.abs()) / counts, math.nan)
        return torch.cat([bf16_bytes(scales), pack_flags(values.signbit())], 1)

    def unpack(self, records: Tensor) -> Tensor:
        """Plus or minus the scale."""
        scales = bf16_scales(records, 0, 1)
        return torch.where(unpack_flags(records[:, 2:]), -scales, scales)
