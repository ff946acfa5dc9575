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

    def decode(self, payload: Tensor, values: Tensor) -> None:
        """Copy."""
        values.copy_(payload.view(torch.float32))
