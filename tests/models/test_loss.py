"""The vocabulary's cross entropy in chunks is the plain formula, to the last gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shoal.core.machine import cpp_compiler
from shoal.core.native import matrices
from shoal.models import loss
from shoal.models.loss import IGNORED, LossKernel, Softening, linear_cross_entropy, softened

native = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


def make(rows: int, vocabulary: int, dim: int, ignored: float = 0.0, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, dim, generator=random, requires_grad=True)
    weight = torch.randn(vocabulary, dim, generator=random, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,), generator=random)
    return hidden, weight, targets.where(torch.rand(rows, generator=random) >= ignored, IGNORED)


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients by the formula, in float64."""
    hidden = hidden.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    total = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED, reduction="sum")
    (total * upstream).backward()
    assert hidden.grad is not None and weight.grad is not None
    return total.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("kernel", [None, pytest.param(matrices.cross_entropy, marks=native)], ids=["chunks", "native"])
@pytest.mark.parametrize("soft", [Softening(), Softening(0.1, 1e-2)], ids=["plain", "softened"])
@pytest.mark.parametrize("upstream", [1.0, 0.5])
def test_a_bias_is_added_to_the_logits_and_has_its_gradient_and_nothing_is_copied_for_it(
    monkeypatch: pytest.MonkeyPatch, kernel: LossKernel | None, soft: Softening, upstream: float
) -> None:
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    monkeypatch.setattr(matrices, "CHUNK_BYTES", 0)
    hidden, weight, targets = make(rows=500, vocabulary=65, dim=16, ignored=0.2)
    bias = torch.randn(65, generator=torch.Generator().manual_seed(5), requires_grad=True)
    used = softened(soft, kernel) if soft else kernel
    total = linear_cross_entropy(hidden, weight, targets, used, bias)
    found = [total.detach(), *torch.autograd.grad(total * upstream, [hidden, weight, bias])]
    doubles = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    logits = doubles[0] @ doubles[1].T + doubles[2]
    right = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=soft.smoothing)
    right = right + soft.z * (logits.logsumexp(1).square() * (targets != IGNORED)).sum()
    for mine, its in zip(found, [right.detach(), *torch.autograd.grad(right * upstream, doubles)], strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=1e-5, atol=3e-5)
    with torch.no_grad():
        plain = F.cross_entropy(hidden @ weight.T + bias, targets, ignore_index=IGNORED, reduction="sum")
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, used, bias), plain)


def assert_equal_to_reference(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: float = 1.0) -> None:
    total = linear_cross_entropy(hidden, weight, targets)
    (total * upstream).backward()
    assert total.dtype == torch.float32
    assert hidden.grad is not None and weight.grad is not None
    expected = reference(hidden, weight, targets, upstream)
    for found, wanted in zip((total.detach(), hidden.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 11 * 3, 8 << 20], ids=["a row at a time", "three rows", "all at once"])
@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.parametrize("upstream", [1.0, -0.37])
def test_loss_and_gradients_are_those_of_the_float64_formula(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, ignored: float, upstream: float
) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    assert_equal_to_reference(*make(rows=20, vocabulary=11, dim=5, ignored=ignored), upstream)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 17), vocabulary=st.integers(1, 9), dim=st.integers(1, 6), chunk_rows=st.integers(1, 20),
    ignored=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_loss_and_gradients_are_exact_at_any_shape(
    rows: int, vocabulary: int, dim: int, chunk_rows: int, ignored: float, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_BYTES", 4 * vocabulary * chunk_rows)
        assert_equal_to_reference(*make(rows, vocabulary, dim, ignored, seed))


def test_without_any_target_loss_and_gradients_are_zero() -> None:
    hidden, weight, targets = make(rows=7, vocabulary=5, dim=3, ignored=1.0)
    total = linear_cross_entropy(hidden, weight, targets)
    total.backward()
    assert hidden.grad is not None and weight.grad is not None
    assert total.item() == 0
    assert not hidden.grad.any() and not weight.grad.any()


def test_an_ignored_row_counts_for_nothing_whatever_it_holds() -> None:
    hidden, weight, targets = make(rows=6, vocabulary=5, dim=3)
    kept = targets.clone()
    kept[2] = IGNORED
    without = linear_cross_entropy(hidden[[0, 1, 3, 4, 5]], weight, targets[[0, 1, 3, 4, 5]])
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, kept), without)


def test_loss_of_logits_far_from_zero_stays_finite() -> None:
    hidden, weight, targets = make(rows=6, vocabulary=5, dim=3)
    scaled = (hidden.detach() * 1e3).requires_grad_()
    total = linear_cross_entropy(scaled, weight, targets)
    total.backward()
    assert scaled.grad is not None
    expected, gradient, _ = reference(scaled, weight, targets)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(scaled.grad.double(), gradient, rtol=1e-4, atol=1e-4)


def test_under_autocast_it_is_close_and_keeps_the_types_of_its_inputs() -> None:
    hidden, weight, targets = make(rows=40, vocabulary=11, dim=5, ignored=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, targets)
    total.backward()
    assert hidden.grad is not None and weight.grad is not None
    assert (total.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32,) * 3
    expected, hidden_gradient, weight_gradient = reference(hidden, weight, targets)
    torch.testing.assert_close(total.double(), expected, rtol=0.02, atol=0.1)
    for found, wanted in ((hidden.grad, hidden_gradient), (weight.grad, weight_gradient)):
        assert (found.double() - wanted).norm() < 0.02 * wanted.norm()


def test_bf16_inputs_get_bf16_gradients() -> None:
    hidden, weight, targets = make(rows=40, vocabulary=11, dim=5)
    half_hidden, half_weight = (tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight))
    linear_cross_entropy(half_hidden, half_weight, targets).backward()
    assert half_hidden.grad is not None and half_weight.grad is not None
    _, hidden_gradient, weight_gradient = reference(half_hidden, half_weight, targets)
    assert (half_hidden.grad.dtype, half_weight.grad.dtype) == (torch.bfloat16,) * 2
    assert (half_hidden.grad.double() - hidden_gradient).norm() < 0.02 * hidden_gradient.norm()
    assert (half_weight.grad.double() - weight_gradient).norm() < 0.02 * weight_gradient.norm()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_logits_are_computed(off: type) -> None:
    hidden, weight, targets = make(rows=20, vocabulary=11, dim=5)
    with FlopCounterMode(display=False) as counted, off():
        total = linear_cross_entropy(hidden, weight, targets)
    assert counted.get_total_flops() == 2 * 20 * 11 * 5
    torch.testing.assert_close(total.double(), reference(hidden, weight, targets)[0], rtol=1e-5, atol=1e-5)


def test_a_target_outside_the_vocabulary_is_an_error() -> None:
    hidden, weight, targets = make(rows=4, vocabulary=5, dim=3)
    with pytest.raises(IndexError):
        linear_cross_entropy(hidden, weight, targets.index_fill(0, torch.tensor([1]), 5))
