"""Native attention: equal to the formula in float64, under autograd, torch.compile and threads."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from shoal.core import native
from shoal.core.machine import cpp_compiler
from shoal.core.native import attention as native_attention
from shoal.models.reach import Reach
from shoal.train.model_setup import KEPT

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


def attention(*inputs: Tensor | None) -> Tensor:
    """The library's output, which must not be missing."""
    output = native_attention.attention(*inputs)  # type: ignore[arg-type]
    assert output is not None
    return output


SHAPES = [  # batch, heads, key-value heads, tokens, head dim
    *[(2, 2, 2, tokens, 16) for tokens in (1, 3, 63, 64, 65, 256, 257)],
    *[(1, 2, 1, 130, width) for width in (8, 24, 40, 64, 96, 128, 256)],
    (2, 6, 2, 77, 32),
    (1, 4, 1, 300, 64),
    (3, 3, 3, 129, 64),
    (1, 1, 1, 520, 8),
]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensors(B: int, H: int, K: int, T: int, E: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values as views of one buffer, as the model's projection gives them, and a gradient."""
    generator = torch.Generator().manual_seed(B + H + K + T + E)
    group = H // K
    qkv = torch.randn(B, T, K, group + 2, E, generator=generator)
    q_BHTE = qkv[..., :-2, :].reshape(B, T, H, E).transpose(1, 2)
    k_BKTE, v_BKTE = qkv[..., -2, :].transpose(1, 2), qkv[..., -1, :].transpose(1, 2)
    do_BHTE = torch.randn(B, T, H, E, generator=generator).transpose(1, 2)
    return q_BHTE, k_BKTE, v_BKTE, do_BHTE


def formula(
    q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, low_BT: Tensor | None = None, high_BT: Tensor | None = None
) -> Tensor:
    """Softmax attention as written in books."""
    T, group = q_BHTE.shape[2], q_BHTE.shape[1] // k_BKTE.shape[1]
    k_BHTE, v_BHTE = k_BKTE.repeat_interleave(group, 1), v_BKTE.repeat_interleave(group, 1)
    scores = q_BHTE @ k_BHTE.mT / math.sqrt(q_BHTE.shape[-1])
    position = torch.arange(T)
    low = torch.zeros(1, T, 1) if low_BT is None else low_BT[..., None]
    high = position[None, :, None] + 1 if high_BT is None else high_BT[..., None]
    seen = (position >= low) & (position < high)
    return scores.masked_fill(~seen[:, None], -math.inf).softmax(-1) @ v_BHTE


def with_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], do_BHTE: Tensor) -> list[Tensor]:
    """Output and the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, do_BHTE.to(output.dtype))]


def test_the_library_compiles_here() -> None:
    library, reason = native.load()
    assert library is not None, reason


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_equal_the_formula_in_float64(shape: tuple[int, ...]) -> None:
    *inputs, do_BHTE = tensors(*shape)
    expected = with_gradients(formula, tuple(x.double() for x in inputs), do_BHTE)
    for actual, wanted in zip(with_gradients(attention, tuple(inputs), do_BHTE), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-5, atol=2e-6)


def intervals(kind: str, B: int, T: int) -> tuple[Tensor | None, Tensor | None]:
    """Where each token's interval begins and ends."""
    position = torch.arange(T, dtype=torch.int32).expand(B, T)
    if kind == "all":
        return torch.zeros_like(position), torch.full_like(position, T)
    if kind == "window":
        return (position - 5).clamp(min=0), (position + 6).clamp(max=T)
    if kind == "itself":
        return position, position + 1
    if kind == "prefix":
        return None, (position + 1).clamp(min=min(T, 70))
    generator = torch.Generator().manual_seed(T)
    reach = Reach.of_documents((torch.rand(B, T, generator=generator) < 0.03).cumsum(1), causal=kind == "causal documents")
    return reach.low, reach.high


KINDS = ["all", "window", "itself", "prefix", "documents", "causal documents"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2, 2, 63, 16), (2, 4, 2, 257, 32), (1, 2, 1, 520, 8), (3, 1, 1, 1, 16)], ids=str)
def test_intervals_equal_the_formula_in_float64(kind: str, shape: tuple[int, ...]) -> None:
    *inputs, do_BHTE = tensors(*shape)
    edges = intervals(kind, shape[0], shape[3])
    expected = with_gradients(lambda *x: formula(*x, *edges), tuple(x.double() for x in inputs), do_BHTE)
    actual = with_gradients(lambda *x: attention(*x, *edges), tuple(inputs), do_BHTE)
    for mine, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("logit", [-80.0, 80.0])
def test_large_logits_do_not_overflow(logit: float) -> None:
    q_BHTE, k_BKTE, v_BKTE, do_BHTE = tensors(1, 2, 2, 200, 64)
    # One key gets the logit from every query; the others get ordinary ones.
    q_BHTE = q_BHTE.clone()
    k_BKTE = k_BKTE.clone()
    q_BHTE[..., 0] = 8.0
    k_BKTE[..., 0] = 0.0
    k_BKTE[:, :, 70, 0] = logit
    inputs = (q_BHTE, k_BKTE, v_BKTE)
    expected = with_gradients(formula, tuple(x.double() for x in inputs), do_BHTE)
    for actual, wanted in zip(with_gradients(attention, inputs, do_BHTE), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-4, atol=1e-4)  # PyTorch's own is 5e-5 off


def test_output_and_gradients_are_laid_out_by_token() -> None:
    *inputs, do_BHTE = tensors(2, 4, 2, 20, 16)
    for result in with_gradients(attention, tuple(inputs), do_BHTE):
        assert result.transpose(1, 2).is_contiguous()


def test_any_strides_are_read() -> None:
    *inputs, do_BHTE = tensors(2, 2, 2, 33, 16)
    expected = with_gradients(attention, tuple(inputs), do_BHTE)
    scattered = tuple(x.mT.contiguous().mT for x in inputs)  # the last dim is not contiguous
    for gradient in (do_BHTE.mT.contiguous().mT, do_BHTE.contiguous()):
        for actual, wanted in zip(with_gradients(attention, scattered, gradient), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("kind", [None, "window", "documents"])
@pytest.mark.parametrize("shape", [(2, 2, 63, 16), (1, 3, 130, 40), (2, 6, 256, 64)], ids=str)
def test_packed_inputs_give_the_same_bits_and_their_gradient_in_one_piece(shape: tuple[int, ...], kind: str | None) -> None:
    B, H, T, E = shape
    generator = torch.Generator().manual_seed(T)
    qkv, do_BHTE = (
        torch.randn(B, T, H, 3, E, generator=generator),
        torch.randn(B, T, H, E, generator=generator).transpose(1, 2),
    )
    edges = (None, None) if kind is None else intervals(kind, B, T)

    def packed(qkv_BTHSE: Tensor) -> Tensor:
        output = native_attention.packed_attention(qkv_BTHSE, *edges)
        assert output is not None
        return output

    output, gradient = with_gradients(packed, (qkv,), do_BHTE)
    wanted, *parts = with_gradients(lambda *x: attention(*x, *edges), native_attention.parts(qkv), do_BHTE)
    assert torch.equal(output, wanted)
    assert gradient.is_contiguous()
    assert torch.equal(gradient, torch.stack([x.transpose(1, 2) for x in parts], 3))
    for actual, mine in zip(
        with_gradients(torch.compile(packed, fullgraph=True), (qkv,), do_BHTE), (output, gradient), strict=True
    ):
        assert torch.equal(actual, mine)


def test_a_gradient_that_is_one_number_expanded() -> None:
    q_BHTE, k_BKTE, v_BKTE, _ = tensors(1, 2, 2, 33, 16)
    leaf = q_BHTE.detach().requires_grad_()
    attention(leaf, k_BKTE, v_BKTE).sum().backward()
    wanted = with_gradients(formula, (q_BHTE, k_BKTE, v_BKTE), torch.ones_like(q_BHTE))[1]
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_shows(which: int, number: float) -> None:
    *inputs, do_BHTE = tensors(1, 1, 1, 150, 16)
    inputs[which] = inputs[which].clone()
    inputs[which][0, 0, 100, 3] = number
    output, *gradients = with_gradients(attention, tuple(inputs), do_BHTE)
    assert not output[0, 0, 100:].isfinite().all()
    assert output[0, 0, :64].isfinite().all()
    assert not gradients[0][0, 0, 100:].isfinite().all()


def test_the_bits_are_the_same_twice_and_with_two_threads(threads: None) -> None:
    *inputs, do_BHTE = tensors(3, 4, 2, 150, 32)
    torch.set_num_threads(1)
    expected = with_gradients(attention, tuple(inputs), do_BHTE)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for actual, wanted in zip(with_gradients(attention, tuple(inputs), do_BHTE), expected, strict=True):
            assert torch.equal(actual, wanted)


def test_the_operators_keep_pytorchs_rules() -> None:
    q_BHTE, k_BKTE, v_BKTE, do_BHTE = tensors(2, 4, 2, 20, 16)
    inputs = tuple(x.detach().requires_grad_() for x in (q_BHTE, k_BKTE, v_BKTE))
    for edges in ((None, None), intervals("documents", 2, 20)):
        forward = torch.library.opcheck(native_attention.forward, (*inputs, *edges))
        o_BHTE, logsumexp_BHT = native_attention.forward(q_BHTE, k_BKTE, v_BKTE, *edges)
        saved = (q_BHTE, k_BKTE, v_BKTE, o_BHTE, do_BHTE, logsumexp_BHT)
        backward = torch.library.opcheck(native_attention.backward, (*saved, *edges))
        assert {*forward.values(), *backward.values()} == {"SUCCESS"}
        qkv_BTHSE = torch.randn(2, 20, 4, 3, 16).requires_grad_()
        forward = torch.library.opcheck(native_attention.packed_forward, (qkv_BTHSE, *edges))
        saved = (qkv_BTHSE.detach(), o_BHTE, do_BHTE, logsumexp_BHT)
        backward = torch.library.opcheck(native_attention.packed_backward, (*saved, *edges))
        assert {*forward.values(), *backward.values()} == {"SUCCESS"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_graph_break_equals_eager(dynamic: bool) -> None:
    def doubled(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        return attention(q_BHTE * 2, k_BKTE, v_BKTE) * 2

    *inputs, do_BHTE = tensors(2, 4, 2, 40, 16)
    compiled = torch.compile(doubled, fullgraph=True, dynamic=dynamic)
    expected = with_gradients(doubled, tuple(inputs), do_BHTE)
    for actual, wanted in zip(with_gradients(compiled, tuple(inputs), do_BHTE), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("unsuitable", [lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x[..., :12]])
def test_what_does_not_suit_is_left_to_pytorch(unsuitable: Callable[[Tensor], Tensor]) -> None:
    assert native_attention.attention(*(unsuitable(x) for x in tensors(2, 4, 2, 20, 16)[:3])) is None
    assert native_attention.packed_attention(unsuitable(torch.randn(2, 20, 4, 3, 16))) is None


def test_selective_recomputation_keeps_both_kinds() -> None:
    assert {torch.ops.shoal.attention.default, torch.ops.shoal.packed_attention.default} <= {*KEPT}
