"""fp32 as it is: what travels where nothing is to be made small."""

import torch
from torch import Tensor


class Plain:
    """Four bytes a value, exact."""

    block = 1

    def nbytes(self, length: int) -> int:
        """Four bytes a value."""
        return 4 * length

    def encode(self, values: Tensor, payload: Tensor) -> None:
        """Copy."""
        payload.view(torch.float32).copy_(values)

    def decode(self, payload: Tensor, values: Tensor, add: bool = False) -> None:
        """Copy, or add."""
        numbers = payload.view(torch.float32)
        values.add_(numbers) if add else values.copy_(numbers)
