"""Half precision, nearest rounding: bf16, the exponents of fp32 with 8 bits of mantissa, and fp16 with 11."""

import torch
from torch import Tensor


class Bfloat16:
    """16 bits a value. What is not finite stays so, value by value."""

    block, record, native, keep = 64, 128, "bf16", 0

    def pack(self, values: Tensor, last: int) -> Tensor:
        """Round."""
        return values.bfloat16().view(torch.uint8)

    def unpack(self, records: Tensor) -> Tensor:
        """Exact."""
        return records.view(torch.bfloat16).float()


class Float16:
    """16.03 bits a value: a record is the exponent of a power of two, one byte, then the halves.

    fp16 ends at 65,504, which sums of gradients may exceed, and rounds what is below 6e-5 more and more coarsely. So a block
    is multiplied by the power of two that brings its largest value to between 2^14 and 2^15: values down to 2^-28 of that
    keep all 11 bits.
    """

    block, record, native, keep = 256, 513, "fp16", 0

    def pack(self, values: Tensor, last: int) -> Tensor:
        """Scale, which is exact, and round."""
        exponents = values.abs().amax(1, keepdim=True).view(torch.int32) >> 23 & 255  # with fp32's bias of 127
        powers = torch.where(exponents < 255, (exponents - 14).clamp(min=1), 255)
        factors = ((254 - powers).clamp(min=1) << 23).view(torch.float32)
        halves = torch.where(powers < 255, values * factors, 0.0).half()
        return torch.cat([powers.to(torch.uint8), halves.view(torch.uint8)], 1)

    def unpack(self, records: Tensor) -> Tensor:
        """Exact; zero times infinity is not a number."""
        powers = (records[:, :1].int() << 23).view(torch.float32)
        halves = records[:, 1:].clone(memory_format=torch.contiguous_format)  # can't be viewed at odd addresses
        return halves.view(torch.float16).float() * powers
