"""Half precision: two bytes a value, nearest rounding."""

import torch
from torch import Tensor


class Half:
    """bf16 (the exponents of fp32, 8 bits of mantissa) or fp16 (11 bits, values to 65,504)."""

    block = 1

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def nbytes(self, length: int) -> int:
        """Two bytes a value."""
        return 2 * length

    def encode(self, values: Tensor, payload: Tensor) -> None:
        """Round."""
        payload.view(self.dtype).copy_(values)

    def decode(self, payload: Tensor, values: Tensor) -> None:
        """Exact."""
        values.copy_(payload.view(self.dtype))
