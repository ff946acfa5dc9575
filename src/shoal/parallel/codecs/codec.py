"""The seam of codecs: how a row of numbers is made small for the wire, and how what that drops is not lost."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Codec(Protocol):
    """Encodes flat fp32 tensors; how many bytes that gives depends on their length alone, so ranks needn't tell each other.

    Numbers are taken in blocks of `block`, and a payload is the records of the blocks, one after the other. A block with a
    value that is not finite decodes to values that are not either: whoever gets it must notice. So may values above a
    256th of fp32's largest, whose sums are not finite. All devices decode a payload to the same bits. Other than contiguous
    fp32 [n] and uint8 [nbytes(n)] is refused with `ValueError`.
    """

    block: int

    def nbytes(self, length: int) -> int:
        """Exact size of `length` numbers, encoded."""
        ...

    def encode(self, values: Tensor, payload: Tensor) -> None:
        """Fill `payload` (uint8 [nbytes(n)]) from `values` (fp32 [n])."""
        ...

    def decode(self, payload: Tensor, values: Tensor, add: bool = False) -> None:
        """Fill `values` (fp32 [n]) from `payload` (uint8 [nbytes(n)]), or add to them."""
        ...


@runtime_checkable
class Fused(Protocol):
    """A codec that may know a faster way to encode with feedback."""

    def encode_fused(self, values: Tensor, dropped: Tensor, payload: Tensor, decay: float) -> bool:
        """Do what `encode_with_feedback` does; or return False, having done nothing."""
        ...


@torch.no_grad()
def encode_with_feedback(codec: Codec, values: Tensor, dropped: Tensor, payload: Tensor, decay: float = 1.0) -> None:
    """Encode `values + decay × dropped`, and keep in `dropped` (fp32 [n]) what did not get through (Seide et al. 2014).

    `values` may be overwritten. Where they, or what is kept, is not finite, `dropped` stays as it was: a bad step must not
    spoil those after it.
    """
    check(dropped, payload, len(values), codec.nbytes(len(values)))
    if isinstance(codec, Fused) and codec.encode_fused(values, dropped, payload, decay):
        return
    # rounded before it is added, as a fused multiply-add would not, and other code doesn't either
    values.add_(dropped if decay == 1.0 else dropped * decay)
    codec.encode(values, payload)
    decoded = torch.empty_like(values)
    codec.decode(payload, decoded)
    error = values.sub_(decoded)
    torch.where(error.isfinite(), error, dropped, out=dropped)


def check(values: Tensor, payload: Tensor, length: int, nbytes: int) -> None:
    """Raise `ValueError` unless these are contiguous fp32 [length] and uint8 [nbytes] in one place."""
    for what, tensor, dtype, size in (
        ("values", values, torch.float32, length),
        ("a payload", payload, torch.uint8, nbytes),
    ):
        if tensor.dtype != dtype or tensor.shape != (size,) or not tensor.is_contiguous():
            layout = "" if tensor.is_contiguous() else ", not contiguous"
            raise ValueError(f"{what} must be contiguous {dtype} [{size}], not {tensor.dtype} {list(tensor.shape)}{layout}")
    if values.device != payload.device:
        raise ValueError(f"values are on {values.device} and their payload on {payload.device}")
