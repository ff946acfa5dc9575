"""Numbers in blocks, each encoded to a record of fixed size: what all codecs have in common.

Formats are written down once in PyTorch's operations, for any device, and once in `core/native/codecs.cpp`, for CPUs, with
the same bits. One core of an EPYC (Zen 4) then encodes int8 and int4 at several GB/s of fp32 instead of some 0.3 (measured
in bench/results/codecs.md). The last block is filled up with zeros.
"""

import ctypes
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.core.native import available, call, pointer
from shoal.parallel.codecs.codec import check


class Format(Protocol):
    """How a block of `block` fp32 numbers becomes `record` bytes.

    `native`: the name of its functions in codecs.cpp; `keep` is passed on to them.
    """

    block: int
    record: int
    native: str
    keep: int

    def pack(self, values: Tensor, last: int) -> Tensor:
        """Values [blocks, block], of which the last block has `last`, as records (uint8 [blocks, record])."""
        ...

    def unpack(self, records: Tensor) -> Tensor:
        """The reverse."""
        ...


class Blocks:
    """The codec of a format."""

    def __init__(self, form: Format) -> None:
        self.format, self.block = form, form.block

    def nbytes(self, length: int) -> int:
        """Whole records."""
        return -(-length // self.block) * self.format.record

    def encode(self, values: Tensor, payload: Tensor) -> None:
        """Fill `payload`."""
        check(values, payload, len(values), self.nbytes(len(values)))
        if self._native(values):
            self._encode(values, None, payload, 1.0)
        elif len(values):
            missing = -len(values) % self.block
            padded = F.pad(values, (0, missing)) if missing else values
            payload.copy_(self.format.pack(padded.view(-1, self.block), self.block - missing).flatten())

    def encode_fused(self, values: Tensor, dropped: Tensor, payload: Tensor, decay: float) -> bool:
        """Encode with feedback a block at a time, leaving `values` as they are; False where there is no native code."""
        if not self._native(values):
            return False
        check(values, payload, len(values), self.nbytes(len(values)))
        self._encode(values, dropped, payload, decay)
        return True

    def decode(self, payload: Tensor, values: Tensor, add: bool = False) -> None:
        """Fill `values`, or add to them."""
        check(values, payload, len(values), self.nbytes(len(values)))
        if self._native(values):
            sizes = map(ctypes.c_int64, (len(values), add, self.format.keep))
            call(f"decode_{self.format.native}", pointer(payload), pointer(values), *sizes)
        elif len(values):
            decoded = self.format.unpack(payload.view(-1, self.format.record)).flatten()[: len(values)]
            values.copy_(values + decoded if add else decoded)

    def _encode(self, values: Tensor, dropped: Tensor | None, payload: Tensor, decay: float) -> None:
        sizes = map(ctypes.c_int64, (len(values), self.format.keep))
        name = f"encode_{self.format.native}"
        call(name, pointer(values), pointer(dropped), ctypes.c_float(decay), pointer(payload), *sizes)

    def _native(self, values: Tensor) -> bool:
        """Whether values lie where native code reads them; tensors of other types may have none at all."""
        return type(values) is Tensor and values.device.type == "cpu" and available()


def bf16_bytes(scales: Tensor) -> Tensor:
    """fp32 scales [blocks, n] as bytes of bf16 (uint8 [blocks, 2 n])."""
    return scales.bfloat16().view(torch.uint8)


def bf16_scales(records: Tensor, begin: int, count: int) -> Tensor:
    """The reverse, of `count` scales that begin at a byte of each record."""
    # of their own, as bf16 can't be viewed at odd addresses
    return records[:, begin : begin + 2 * count].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()


def sum_by_halves(values: Tensor) -> Tensor:
    """Sums of rows [blocks, n] as [blocks, 1], n a power of two: the same bits on any device, and exacter than in a row."""
    while values.shape[1] > 1:
        low, high = values.chunk(2, dim=1)
        values = low + high
    return values


def pack_flags(flags: Tensor) -> Tensor:
    """Booleans [blocks, n] as bits of bytes (uint8 [blocks, n / 8]), the first in the lowest bit."""
    return (flags.view(len(flags), -1, 8) * _places(flags)).sum(2, dtype=torch.uint8)


def unpack_flags(packed: Tensor) -> Tensor:
    """The reverse."""
    return (packed[:, :, None] & _places(packed)).flatten(1) != 0


def _places(like: Tensor) -> Tensor:
    return 1 << torch.arange(8, dtype=torch.uint8, device=like.device)
