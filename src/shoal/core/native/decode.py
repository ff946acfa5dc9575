"""Decoding on a CPU: the structures of decode.cpp, and weights in fewer bits.

Weight-only quantization: a weight is rounded to nearest where it is stored, and computed with in fp32. int8 has a scale a
row; int4 one for each 32 values of a row, whose largest is represented exactly, so that all 16 codes are used (as
llama.cpp's Q4_0).

Shape suffixes: R rows and W width of a weight.
"""

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from shoal.core.native import call, load, pointer

Format = Literal["fp32", "bf16", "int8", "int4"]
"""How weights are stored; as `Format` of weights.h counts them."""
MULTIPLE = 16
"""Widths are multiples of this: whole vectors, whatever their length."""
GROUP = 32
"""Of int4: so many values have one scale, and rows are multiples of them."""
TOGETHER = 1 << 18
"""Values that are rounded at a time."""


class Kept:
    """Tensors whose addresses structures hold."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def address(self, tensor: Tensor | None) -> ctypes.c_void_p:
        """Of the tensor, which is kept, contiguous; null for none."""
        if tensor is not None:
            tensor = tensor.detach().contiguous()
            self.tensors.append(tensor)
        return pointer(tensor)


class Norm(ctypes.Structure):
    """`Norm` of decode.cpp."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))

    @classmethod
    def of(cls, kept: Kept, norm: torch.nn.Module | None) -> "Norm":
        """A LayerNorm's or RMSNorm's; none for anything else."""
        return cls(*(kept.address(getattr(norm, name, None)) for name in ("weight", "bias")))


class Weight(ctypes.Structure):
    """`Weight` of weights.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("format", ctypes.c_int32),
    )

    @classmethod
    def of(cls, kept: Kept, weight_RW: Tensor, bias_R: Tensor | None, format: Format) -> "Weight":
        """A linear map's weight, stored in that format (fp32: where it lies)."""
        data, scales = quantize(weight_RW, format)
        number = get_args(Format).index(format)
        return cls(kept.address(data), kept.address(scales), kept.address(bias_R), *weight_RW.shape, number)


class Layer(ctypes.Structure):
    """`Layer` of decode.cpp."""

    _fields_ = (
        *((name, Norm) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, Weight) for name in ("qkv", "out", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    )


class Decoder(ctypes.Structure):
    """`Decoder` of decode.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("embedding", "position", "cosine", "sine")),
        *((name, Norm) for name in ("embedding_norm", "norm")),
        ("head", Weight),
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("depth", "dim", "heads", "kv_heads", "head_dim", "hidden", "capacity")),
        ("epsilon", ctypes.c_float),
        ("rms", ctypes.c_int32),
        ("activation", ctypes.c_int32),
    )


def room(decoder: Decoder, tokens: int) -> Tensor:
    """Memory in which passes of up to so many tokens work, for `decode`."""
    library, reason = load()
    if library is None:
        raise RuntimeError(reason)
    library.decode_room.restype = ctypes.c_int64
    return torch.empty(library.decode_room(ctypes.byref(decoder), ctypes.c_int64(tokens)))


def decode(decoder: Decoder, inputs: Iterable[Sequence[int]], logits: Tensor, room: Tensor) -> None:
    """Put (token, slot, place)s into their slots, in one pass; fill `logits` [told, vocabulary] of what follows the last.

    Places are distinct; those before one in its slot are filled, or among the inputs.
    """
    flat = [number for triple in inputs for number in triple]
    array: Any = (ctypes.c_int32 * len(flat))(*flat)
    sizes = ctypes.c_int64(len(flat) // 3), pointer(logits), ctypes.c_int64(len(logits))
    call("decode", ctypes.byref(decoder), array, *sizes, pointer(room))


def quantize(weight_RW: Tensor, format: Format) -> tuple[Tensor, Tensor | None]:
    """(values, scales) as `Weight` of weights.h describes them."""
    weight_RW = weight_RW.detach()
    if format == "fp32":
        return weight_RW, None
    if format == "bf16":
        return weight_RW.bfloat16(), None
    rounding = _to_int8 if format == "int8" else _to_int4
    # some rows at a time: what lies between stays in cache, and is no second copy of the weight
    parts = [rounding(rows) for rows in weight_RW.split(max(1, TOGETHER // weight_RW.shape[1]))]
    values, scales = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return values, scales


def _to_int8(weight_RW: Tensor) -> tuple[Tensor, Tensor]:
    scales_R = weight_RW.abs().amax(1) / 127
    return _divide(weight_RW, scales_R[:, None]).round().to(torch.int8), scales_R


def _to_int4(weight_RW: Tensor) -> tuple[Tensor, Tensor]:
    groups_RGW = weight_RW.unflatten(1, (-1, GROUP))
    highest_RG, lowest_RG = groups_RGW.amax(2), groups_RGW.amin(2)
    scales_RG = highest_RG.where(highest_RG > -lowest_RG, lowest_RG) / -8
    codes_RGW = (_divide(groups_RGW, scales_RG[..., None]).round() + 8).clamp(0, 15).to(torch.uint8)
    low, high = codes_RGW.chunk(2, dim=2)
    return (low | high << 4).flatten(1), scales_RG


def _divide(values: Tensor, scales: Tensor) -> Tensor:
    return values / scales.where(scales != 0, 1)
