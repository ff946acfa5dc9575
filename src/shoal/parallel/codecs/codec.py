"""The seam of codecs: how a row of numbers is made small for the wire, and how what that drops is not lost."""

from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """Encodes flat fp32 tensors; how many bytes that gives depends on their length alone, so ranks needn't tell each other.

    Numbers are taken in blocks of `block`. A block with a value that is not finite decodes to values that are not either:
    whoever gets it must notice.
    """

    block: int

    def nbytes(self, length: int) -> int:
        """Exact size of `length` numbers, encoded."""
        ...

    def encode(self, values: Tensor, payload: Tensor) -> None:
        """Fill `payload` (uint8 [nbytes(n)]) from `values` (fp32 [n])."""
        ...

    def decode(self, payload: Tensor, values: Tensor) -> None:
        """Fill `values` (fp32 [n]) from `payload` (uint8 [nbytes(n)])."""
        ...


@torch.no_grad()
def encode_with_feedback(codec: Codec, values: Tensor, dropped: Tensor, payload: Tensor, decay: float = 1.0) -> None:
    """Encode `values + decay × dropped`, and keep in `dropped` (fp32 [n]) what did not get through (Seide et al. 2014).

    `values` is overwritten. Where they, or what is kept, is not finite, `dropped` stays as it was: a bad step must not
    spoil those after it.
    """
    values.add_(dropped, alpha=decay)
    codec.encode(values, payload)
    decoded = torch.empty_like(values)
    codec.decode(payload, decoded)
    error = values.sub_(decoded)
    torch.where(error.isfinite(), error, dropped, out=dropped)
