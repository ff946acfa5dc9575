"""Dropout for training on a CPU in fp32: a mask that is hashed from a seed, in the backward pass again, and never stored.

PyTorch draws each number of a mask by a generator that doesn't use the processor's vectors: at a rate of 0.1 gpt-bench
trains at 0.85 of its speed with that, and at 0.97 with this (bench/native.py). The seed is drawn from PyTorch's generator,
so what seeds that seeds this; the mask is another one. Results don't depend on the number of threads.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from shoal.core.native import available, call, pointer


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with a share `rate` of its numbers zero, and the others by 1 / (1 - rate) larger."""
    if not (0.0 < rate < 1.0 and x.dtype == torch.float32 and x.device.type == "cpu" and available()):
        return torch.nn.functional.dropout(x, rate)
    return dropped(x, torch.randint(1 << 62, (1,), dtype=torch.int64), rate)


@torch.library.custom_op("shoal::dropout", mutates_args=())
def dropped(x: Tensor, seed: Tensor, rate: float) -> Tensor:
    """By the mask of a seed [1]."""
    x = x.contiguous()
    y = torch.empty_like(x)
    least, scale = ctypes.c_uint32(round(rate * 2**32)), ctypes.c_float(1 / (1 - rate))
    call("dropout", pointer(y), pointer(x), ctypes.c_int64(x.numel()), pointer(seed), least, scale)
    return y


@dropped.register_fake
def _(x: Tensor, seed: Tensor, rate: float) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    _, seed, ctx.rate = inputs
    ctx.save_for_backward(seed)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return dropped(dy, ctx.saved_tensors[0], ctx.rate), None, None


dropped.register_autograd(_gradients, setup_context=_save)
