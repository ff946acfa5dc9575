"""Weights in fewer bits: how far a value may be from what was given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.native.decode import GROUP, quantize


def dequantize(values: Tensor, scales: Tensor | None) -> Tensor:
    """The weight [rows, width] that `quantize` stored, in fp32."""
    if scales is None:
        return values.float()
    if scales.dim() == 1:
        return values.float() * scales[:, None]
    packed_RGB = values.unflatten(1, (-1, GROUP // 2))
    codes_RGW = torch.cat((packed_RGB & 15, packed_RGB >> 4), dim=2).float()
    return ((codes_RGW - 8) * scales[..., None]).flatten(1)


def weights(seed: int, size: float) -> Tensor:
    return torch.randn(3, 2 * GROUP, generator=torch.Generator().manual_seed(seed)) * size


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_int8_is_within_half_a_step_of_its_rows_largest(seed: int, size: float) -> None:
    weight = weights(seed, size)
    stored, scales = quantize(weight, "int8")
    step = weight.abs().amax(1, keepdim=True) / 127
    assert stored.dtype == torch.int8 and stored.numel() == weight.numel()
    assert ((dequantize(stored, scales) - weight).abs() <= step * 0.5001).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_int4_keeps_a_groups_largest_and_is_within_a_step(seed: int, size: float) -> None:
    """Half a step, but for values near the largest's opposite, which would need a 17th code."""
    weight = weights(seed, size)
    stored, scales = quantize(weight, "int4")
    assert stored.dtype == torch.uint8 and stored.numel() == weight.numel() / 2
    groups, given_back = weight.unflatten(1, (-1, GROUP)), dequantize(stored, scales).unflatten(1, (-1, GROUP))
    largest = groups.abs().argmax(2, keepdim=True)
    step = groups.abs().amax(2, keepdim=True) / 8
    torch.testing.assert_close(given_back.gather(2, largest), groups.gather(2, largest))
    error = (given_back - groups).abs()
    opposite = groups / groups.gather(2, largest) < -7.5 / 8
    assert (error <= step * torch.where(opposite, 1.0001, 0.5001)).all()


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
def test_zeros_stay_zeros(format: str) -> None:
    assert not dequantize(*quantize(torch.zeros(2, GROUP), format)).any()  # type: ignore[arg-type]
