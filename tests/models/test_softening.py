"""Label smoothing and z-loss: the float64 formula in every kernel, and only in what is minimised."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from shoal.core.machine import cpp_compiler
from shoal.core.native import matrices
from shoal.models import loss
from shoal.models.loss import (
    IGNORED,
    LossKernel,
    Softening,
    chunked,
    fused_chunk,
    linear_cross_entropy,
    plain_chunk,
    softened,
)
from shoal.parallel.mesh import Axis
from shoal.parallel.tensor import TensorRanks, vocabulary_cross_entropy
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.models.test_loss import make
from tests.ranks import run_ranks

native = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
SOFT = [Softening(0.1), Softening(z=1e-2), Softening(0.3, 1e-3)]


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, soft: Softening) -> list[Tensor]:
    """Loss and both gradients by the formula, in float64; smoothing is torch's."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits = hidden @ weight.T
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=soft.smoothing)
    total = total + soft.z * (logits.logsumexp(1).square() * (targets != IGNORED)).sum()
    return [total.detach(), *torch.autograd.grad(total, [hidden, weight])]


def of(kernel: object, hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    hidden, weight = (tensor.detach().requires_grad_() for tensor in (hidden, weight))
    total = linear_cross_entropy(hidden, weight, targets, kernel)  # type: ignore[arg-type]
    return [total.detach(), *torch.autograd.grad(total, [hidden, weight])]


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=2e-5)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 17), vocabulary=st.integers(1, 9), chunk_rows=st.integers(1, 20), seed=st.integers(0, 1000),
    ignored=st.sampled_from([0.0, 0.3, 1.0]), smoothing=st.floats(0, 0.9), z=st.floats(0, 0.1),
    kernel=st.sampled_from([None, chunked(fused_chunk)]),
)  # fmt: skip
def test_loss_and_gradients_are_those_of_the_float64_formula(
    rows: int,
    vocabulary: int,
    chunk_rows: int,
    seed: int,
    ignored: float,
    smoothing: float,
    z: float,
    kernel: LossKernel | None,
) -> None:
    inputs, soft = make(rows, vocabulary, 5, ignored, seed), Softening(smoothing, z)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_BYTES", 4 * vocabulary * chunk_rows)
        assert_near(of(softened(soft, kernel), *inputs), reference(*inputs, soft))


@pytest.mark.parametrize("soft", [Softening(), *SOFT], ids=str)
def test_a_fused_chunk_of_bf16_logits_gives_what_single_operations_give(soft: Softening) -> None:
    random = torch.Generator().manual_seed(3)
    logits, targets = torch.randn(40, 65, generator=random).bfloat16(), torch.randint(65, (40,), generator=random)
    targets[::5] = IGNORED
    loss_sum, gradient = fused_chunk(logits, targets, True, soft)
    expected, right = plain_chunk(logits, targets, True, soft)
    torch.testing.assert_close(loss_sum, expected, rtol=1e-5, atol=1e-4)
    assert gradient is not None and right is not None and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient, right.bfloat16(), rtol=1e-2, atol=1e-3)
    assert fused_chunk(logits, targets, False, soft)[1] is None


def test_a_gpu_has_round_numbers_of_tokens_at_once() -> None:
    weight = torch.empty(50304, 768, device="meta")
    assert loss.rows_at_once(weight) == 1024 and loss.rows_at_once(weight, compiled=True) == 4096
    assert loss.rows_at_once(torch.empty(1 << 40, 1, device="meta")) == 1


@native
@pytest.mark.parametrize("soft", SOFT, ids=str)
@pytest.mark.parametrize("vocabulary", [16, 65, 1000])
def test_the_native_kernel_gives_the_formula(monkeypatch: pytest.MonkeyPatch, soft: Softening, vocabulary: int) -> None:
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    monkeypatch.setattr(matrices, "CHUNK_BYTES", 0)
    monkeypatch.setattr(loss, "by_chunks", None)  # nothing else computes it
    inputs = make(rows=500, vocabulary=vocabulary, dim=48, ignored=0.2)
    scaled = (inputs[0] / 48**0.5, *inputs[1:])
    assert_near(of(softened(soft, matrices.cross_entropy), *scaled), reference(*scaled, soft))


@native
def test_the_native_kernel_softens_logits_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    logits = torch.zeros(2, 16)
    logits[0, 3], logits[1, 3] = 1e4, -1e4
    inputs = logits, torch.eye(16), torch.tensor([3, 3])
    soft = Softening(0.1, 1e-4)
    found, expected = of(softened(soft, matrices.cross_entropy), *inputs), reference(*inputs, soft)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kernel", [None, pytest.param(matrices.cross_entropy, marks=native)])
def test_what_is_only_measured_is_the_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch, kernel: object) -> None:
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    hidden, weight, targets = make(rows=40, vocabulary=32, dim=16, ignored=0.2)
    with torch.no_grad():
        plain = linear_cross_entropy(hidden, weight, targets)
        assert torch.allclose(linear_cross_entropy(hidden, weight, targets, softened(SOFT[2], kernel)), plain, rtol=1e-6)


def divided(world: World, soft: Softening) -> list[Tensor]:
    hidden, weight, targets = make(rows=20, vocabulary=11, dim=5, ignored=0.2)
    start, end = (11 * edge // world.size for edge in (world.rank, world.rank + 1))
    ranks = TensorRanks(Wire(world), Axis(world.size, world.rank))
    kernel = softened(soft, vocabulary_cross_entropy(ranks, start, 11, IGNORED, chunk_bytes=4 * 4 * 7))
    return of(kernel, hidden, weight[start:end], targets)


@pytest.mark.parametrize("soft", SOFT[2:], ids=str)
def test_over_tensor_ranks_it_is_the_formula(soft: Softening) -> None:
    inputs = make(rows=20, vocabulary=11, dim=5, ignored=0.2)
    by_rank = run_ranks(2, divided, soft)
    weights = torch.cat([weight for _, _, weight in by_rank])
    for total, hidden, _ in by_rank:
        assert_near([total, hidden, weights], reference(*inputs, soft))


def test_under_autocast_it_is_close() -> None:
    hidden, weight, targets = make(rows=40, vocabulary=11, dim=5, ignored=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        found = of(softened(SOFT[2], None), hidden, weight, targets)
    for mine, right in zip(found, reference(hidden, weight, targets, SOFT[2]), strict=True):
        assert (mine.double() - right).norm() < 0.02 * right.norm()
