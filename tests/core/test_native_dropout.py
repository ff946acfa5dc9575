"""Dropout by a hashed mask: as many zeros as asked for, anywhere, and the same again in the backward pass."""

import ctypes
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import native
from shoal.core.native.dropout import dropout, dropped

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")


def seed(number: int) -> torch.Tensor:
    return torch.tensor([number])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**62 - 1), st.floats(0.01, 0.9), st.integers(1, 40_000))
def test_a_share_is_dropped_and_the_rest_made_larger(number: int, rate: float, count: int) -> None:
    y = dropped(torch.ones(count), seed(number), rate)
    kept = y[y != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - rate)))
    spread = math.sqrt(count * rate * (1 - rate))
    assert abs(count - len(kept) - count * rate) <= 6 * spread + 1


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two masks, in standard deviations of what chance would give."""
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1]) * math.sqrt(len(first))


def test_neither_neighbours_nor_other_seeds_nor_chunks_have_to_do_with_each_other() -> None:
    count = 1 << 20
    masks = [dropped(torch.ones(count), seed(number), 0.5) for number in (0, 1, 2, 1 << 32, 1 << 61)]
    found = [correlation(one, other) for index, one in enumerate(masks) for other in masks[:index]]
    found += [correlation(mask[:-step], mask[step:]) for mask in masks for step in (1, 2, 3, 64, 384, 4096, 8192)]
    assert max(map(abs, found)) < 5


def test_the_gradient_has_the_same_mask() -> None:
    x = torch.randn(37, 129, requires_grad=True)
    y = dropout(x, 0.3)
    gradient = torch.randn(37, 129)
    y.backward(gradient)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient * (y / x).detach(), rtol=1e-5, atol=1e-6)
    torch.library.opcheck(dropped, (torch.randn(5, 9, requires_grad=True), seed(3), 0.2))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_torchs_generator_seeds_it_compiled_or_not(compiled: bool) -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        return dropout(x * 2, 0.4) + x

    function = torch.compile(twice) if compiled else twice
    torch.manual_seed(5)
    first, second = function(torch.ones(4000)), function(torch.ones(4000))
    torch.manual_seed(5)
    assert torch.equal(function(torch.ones(4000)), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing_and_order_in_memory_is_no_matter(threads: int) -> None:
    x, y, nine = torch.randn(300, 70), torch.empty(300, 70), seed(9)
    how = ctypes.c_int64(x.numel()), native.pointer(nine), ctypes.c_uint32(1 << 30), ctypes.c_float(4 / 3)
    library, _ = native.load()
    assert library is not None and library.dropout(native.pointer(y), native.pointer(x), *how, ctypes.c_int64(threads)) == 0
    assert torch.equal(dropped(x, nine, 0.25), y)
    assert torch.equal(dropped(x.T.contiguous().T, nine, 0.25), y)


def test_what_is_no_number_is_not_hidden_and_other_kinds_are_torchs() -> None:
    assert dropped(torch.full((100,), math.nan), seed(1), 0.5).isnan().all()
    for x in (torch.ones(2000, dtype=torch.float64), torch.ones(2000, dtype=torch.bfloat16)):
        y = dropout(x, 0.5)
        assert y.dtype == x.dtype and 800 < int((y == 0).sum()) < 1200
    assert torch.equal(dropout(torch.ones(9), 0.0), torch.ones(9))
