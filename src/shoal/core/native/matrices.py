"""Linear maps, the MLP and the vocabulary's cross entropy for training on a CPU in fp32: own matrix products.

A library's product can't take the work beside it along. Here GELU is computed while its values are packed for the next
product, the gradient of GELU while a product's sums are in registers, a bias's gradient while the gradient is packed, and
logits become their own gradient in cache. They are faster than the libraries' on AMD's processors with AVX2 (Zen 3, the
products alone) and AVX-512 (Zen 4), and as fast as MKL's at 89% of the memory on Intel's with AVX-512 (bench/native.py).

To PyTorch they are operators of their own, as attention is. Results don't depend on the number of threads.

Shape suffixes: N tokens, D width, C columns of a weight, H width inside the MLP, V vocabulary.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from shoal.core.native import available, call, load, pointer

LEAST_WORK = 1 << 24
"""Multiplications below which a call's own cost, 0.1 ms, would show."""
MULTIPLE = 16
DEPTH = 384
"""Of a pass: `DEPTH` of product.h."""
CHUNK_BYTES = 16 << 20
"""Logits that exist at a time, or those of `DEPTH` tokens where these are more."""
ACTIVATIONS = ("gelu", "silu", "relu2", "gelu_erf")
"""As `Activation` of linear.cpp counts them."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def serves() -> bool:
    """Whether products of our own are the faster ones on this machine."""
    library = load()[0] if available() else None
    return library is not None and bool(library.measured_best())


def suits(x: Tensor, *maps: tuple[Tensor, Tensor | None]) -> bool:
    """Whether the library can, and should, take x [..., width] through these (weight, bias); the first tells the work."""
    weights = [weight for weight, _ in maps]
    biases = [bias for _, bias in maps if bias is not None]
    return (
        x.dim() > 1
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in (x, *weights, *biases))
        and all(tensor.is_contiguous() for tensor in (*weights, *biases))
        and all(bias is None or bias.shape == weight.shape[:1] for weight, bias in maps)
        and not any(size % MULTIPLE for weight in weights for size in weight.shape)
        and x.shape[-1] == weights[0].shape[1]
        and x.numel() * weights[0].shape[0] >= max(1, LEAST_WORK)
    )


class Linear(ctypes.Structure):
    """`Linear` of linear.cpp."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("weight_gradient", ctypes.c_void_p),
        ("bias_gradient", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )

    @classmethod
    def of(
        cls, weight_CD: Tensor, bias_C: Tensor | None, gradients: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> "Linear":
        """Addresses of contiguous tensors, which must outlive it."""
        return cls(*map(pointer, (weight_CD, bias_C, *gradients)), *weight_CD.shape)


class Mlp(ctypes.Structure):
    """`Mlp` of linear.cpp."""

    _fields_ = (
        ("up", Linear),
        ("gate", Linear),
        ("down", Linear),
        ("activation", ctypes.c_int32),
        ("inner_up", ctypes.c_void_p),
        ("inner_gate", ctypes.c_void_p),
    )


def linear(x: Tensor, weight_CD: Tensor, bias_C: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`: [..., width] to [..., columns]."""
    if not suits(x, (weight_CD, bias_C)):
        return torch.nn.functional.linear(x, weight_CD, bias_C)
    return linear_forward(x.flatten(0, -2), weight_CD, bias_C).unflatten(0, x.shape[:-1])


@torch.library.custom_op("shoal::linear", mutates_args=())
def linear_forward(x_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    """x times the weight's transpose, plus the bias."""
    x_ND = x_ND.contiguous()
    y_NC = x_ND.new_empty(x_ND.shape[0], weight_CD.shape[0])
    call(
        "linear_forward", ctypes.byref(Linear.of(weight_CD, bias_C)), pointer(y_NC), pointer(x_ND), ctypes.c_int64(len(x_ND))
    )
    return y_NC


@linear_forward.register_fake
def _(x_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], weight_CD.shape[0])


@torch.library.custom_op("shoal::linear_backward", mutates_args=())
def linear_backward(dy_NC: Tensor, x_ND: Tensor, weight_CD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias."""
    dy_NC, x_ND = dy_NC.contiguous(), x_ND.contiguous()
    dx_ND, *gradients = linear_gradients(dy_NC, x_ND, weight_CD)
    structure = Linear.of(weight_CD, None, (gradients[0], gradients[1]))
    call("linear_backward", ctypes.byref(structure), *map(pointer, (dx_ND, dy_NC, x_ND)), ctypes.c_int64(len(x_ND)))
    return dx_ND, gradients[0], gradients[1]


@linear_backward.register_fake
def linear_gradients(dy_NC: Tensor, x_ND: Tensor, weight_CD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised results of `linear_backward`."""
    return x_ND.new_empty(x_ND.shape), weight_CD.new_empty(weight_CD.shape), x_ND.new_empty(weight_CD.shape[0])


def _linear_save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.biased = inputs[2] is not None


def _linear_gradients(ctx: Any, dy_NC: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if not any(ctx.needs_input_grad[1:]):  # frozen: the library's product of its own has nothing to take along
        return dy_NC @ ctx.saved_tensors[1], None, None
    dx_ND, dweight_CD, dbias_C = linear_backward(dy_NC, *ctx.saved_tensors)
    return dx_ND, dweight_CD, dbias_C if ctx.biased else None


linear_forward.register_autograd(_linear_gradients, setup_context=_linear_save)


def mlp(
    x: Tensor,
    up: tuple[Tensor, Tensor | None],
    gate: tuple[Tensor, Tensor | None] | None,
    down: tuple[Tensor, Tensor | None],
    activation: str,
) -> Tensor | None:
    """down(act(up x)), or down(act(gate x) · up x), each a (weight, bias); None where it doesn't suit the library."""
    inner = [up] if gate is None else [up, gate]
    fits = all(weight.shape == up[0].shape for weight, _ in inner) and down[0].shape == up[0].shape[::-1]
    if not (fits and activation in ACTIVATIONS and suits(x, *inner, down)):
        return None
    gate_weight, gate_bias = gate or (None, None)
    kind = ACTIVATIONS.index(activation)
    y_ND, _, _ = mlp_forward(x.flatten(0, -2), *up, gate_weight, gate_bias, *down, kind)
    return y_ND.unflatten(0, x.shape[:-1])


@torch.library.custom_op("shoal::mlp", mutates_args=())
def mlp_forward(
    x_ND: Tensor,
    up_HD: Tensor,
    up_H: Tensor | None,
    gate_HD: Tensor | None,
    gate_H: Tensor | None,
    down_DH: Tensor,
    down_D: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the inner values up and gate before the nonlinearity (the latter empty without a gate)."""
    x_ND = x_ND.contiguous()
    y_ND, up_NH, gate_NH = mlp_outputs(x_ND, up_HD, up_H, gate_HD, gate_H, down_DH, down_D, activation)
    gate = Linear() if gate_HD is None else Linear.of(gate_HD, gate_H)
    inner = pointer(up_NH), pointer(gate_NH if gate_HD is not None else None)
    structure = Mlp(Linear.of(up_HD, up_H), gate, Linear.of(down_DH, down_D), activation, *inner)
    call("mlp_forward", ctypes.byref(structure), pointer(y_ND), pointer(x_ND), ctypes.c_int64(len(x_ND)))
    return y_ND, up_NH, gate_NH


@mlp_forward.register_fake
def mlp_outputs(
    x_ND: Tensor,
    up_HD: Tensor,
    up_H: Tensor | None,
    gate_HD: Tensor | None,
    gate_H: Tensor | None,
    down_DH: Tensor,
    down_D: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised results of `mlp_forward`."""
    N, H = x_ND.shape[0], up_HD.shape[0]
    return x_ND.new_empty(N, down_DH.shape[0]), x_ND.new_empty(N, H), x_ND.new_empty(0 if gate_HD is None else N, H)


@torch.library.custom_op("shoal::mlp_backward", mutates_args=())
def mlp_backward(
    dy_ND: Tensor,
    x_ND: Tensor,
    up_NH: Tensor,
    gate_NH: Tensor,
    up_HD: Tensor,
    gate_HD: Tensor | None,
    down_DH: Tensor,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, then weight and bias of up, gate (empty without one) and down."""
    dy_ND, x_ND = dy_ND.contiguous(), x_ND.contiguous()
    results = mlp_gradients(dy_ND, x_ND, up_NH, gate_NH, up_HD, gate_HD, down_DH, activation)
    dx_ND, dup_HD, dup_H, dgate_HD, dgate_H, ddown_DH, ddown_D = results
    gate = Linear() if gate_HD is None else Linear.of(gate_HD, None, (dgate_HD, dgate_H))
    up, down = Linear.of(up_HD, None, (dup_HD, dup_H)), Linear.of(down_DH, None, (ddown_DH, ddown_D))
    _mlp_backward(dx_ND, dy_ND, x_ND, (up_NH, gate_NH), (up, gate, down), activation)
    return results


def _mlp_backward(
    dx_ND: Tensor,
    dy_ND: Tensor,
    x_ND: Tensor | None,
    inner: tuple[Tensor, Tensor],
    linears: "tuple[Linear, Linear, Linear]",
    activation: int,
) -> None:
    """Fill `dx` and the gradients that up, gate and down point to; without any of these no input is needed."""
    up, gate, down = linears
    up_NH, gate_NH = inner
    structure = Mlp(up, gate, down, activation, pointer(up_NH), pointer(gate_NH if gate_NH.numel() else None))
    room = torch.empty_like(up_NH), torch.empty_like(gate_NH)
    tensors = map(pointer, (dx_ND, *room, dy_ND, x_ND))
    call("mlp_backward", ctypes.byref(structure), *tensors, ctypes.c_int64(len(dy_ND)))


@mlp_backward.register_fake
def mlp_gradients(
    dy_ND: Tensor,
    x_ND: Tensor,
    up_NH: Tensor,
    gate_NH: Tensor,
    up_HD: Tensor,
    gate_HD: Tensor | None,
    down_DH: Tensor,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised results of `mlp_backward`."""
    H, D = up_HD.shape
    gated = 0 if gate_HD is None else H
    sizes = [(x_ND.shape[0], D), (H, D), (H,), (gated, D), (gated,), (D, H), (D,)]
    dx, dup, dup_bias, dgate, dgate_bias, ddown, ddown_bias = (x_ND.new_empty(size) for size in sizes)
    return dx, dup, dup_bias, dgate, dgate_bias, ddown, ddown_bias


@torch.library.custom_op("shoal::mlp_input_gradient", mutates_args=())
def mlp_input_gradient(
    dy_ND: Tensor,
    up_NH: Tensor,
    gate_NH: Tensor,
    up_HD: Tensor,
    gate_HD: Tensor | None,
    down_DH: Tensor,
    activation: int,
) -> Tensor:
    """Gradient of the input alone, where all weights are frozen."""
    dy_ND = dy_ND.contiguous()
    dx_ND = torch.empty_like(dy_ND)
    gate = Linear() if gate_HD is None else Linear.of(gate_HD, None)
    linears = Linear.of(up_HD, None), gate, Linear.of(down_DH, None)
    _mlp_backward(dx_ND, dy_ND, None, (up_NH, gate_NH), linears, activation)
    return dx_ND


@mlp_input_gradient.register_fake
def _(dy_ND: Tensor, *_: Any) -> Tensor:
    return dy_ND.new_empty(dy_ND.shape)


def _mlp_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x_ND, up_HD, up_H, gate_HD, gate_H, down_DH, down_D, ctx.activation = inputs
    ctx.save_for_backward(x_ND, *output[1:], up_HD, gate_HD, down_DH)
    ctx.present = [bias is not None for bias in (up_H, gate_HD, gate_H, down_D)]
    ctx.mark_non_differentiable(*output[1:])


def _mlp_gradients(ctx: Any, dy_ND: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x_ND, up_NH, gate_NH, up_HD, gate_HD, down_DH = ctx.saved_tensors
    if not any(ctx.needs_input_grad[1:]):
        dx_ND = mlp_input_gradient(dy_ND, up_NH, gate_NH, up_HD, gate_HD, down_DH, ctx.activation)
        return (dx_ND, *(None,) * 7)
    dx, dup, dup_bias, dgate, dgate_bias, ddown, ddown_bias = mlp_backward(
        dy_ND, x_ND, up_NH, gate_NH, up_HD, gate_HD, down_DH, ctx.activation
    )
    up_biased, gated, gate_biased, down_biased = ctx.present
    return (
        dx, dup, dup_bias if up_biased else None, dgate if gated else None, dgate_bias if gate_biased else None,
        ddown, ddown_bias if down_biased else None, None,
    )  # fmt: skip


mlp_forward.register_autograd(_mlp_gradients, setup_context=_mlp_save)


def cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    wanted: bool,
    bias: Tensor | None = None,
    smoothing: float = 0.0,
    z: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] | None:
    """Summed cross entropy of `hidden @ weight.T + bias`, negative targets not counted, and where `wanted` its gradients.

    `smoothing` and `z`: those of `models.loss.Softening`. None where it doesn't suit the library.
    """
    tokens, width = hidden_ND.shape
    vocabulary = weight_VD.shape[0]
    tensors = [hidden_ND, weight_VD] if bias is None else [hidden_ND, weight_VD, bias]
    if width % MULTIPLE or tokens * width * vocabulary < max(1, LEAST_WORK):
        return None
    if targets_N.dtype != torch.int64 or not all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors):
        return None
    if int(targets_N.max()) >= vocabulary:
        raise IndexError(f"target {int(targets_N.max())} is out of a vocabulary of {vocabulary}")
    hidden_ND, weight_VD, targets_N = hidden_ND.contiguous(), weight_VD.contiguous(), targets_N.expand(tokens).contiguous()
    losses, bias = hidden_ND.new_empty(tokens), None if bias is None else bias.contiguous()
    inputs = hidden_ND, weight_VD, bias
    gradients = [None if its is None or not wanted else torch.empty_like(its) for its in inputs]
    # whole passes, and not a thread's share: the weight's gradient is summed chunk by chunk
    together = max(1, CHUNK_BYTES // (4 * vocabulary) // DEPTH) * DEPTH
    sizes = map(ctypes.c_int64, (tokens, vocabulary, width, together))
    soft = map(ctypes.c_float, (smoothing, z))
    call("cross_entropy", *map(pointer, (losses, *gradients, *inputs, targets_N)), *sizes, *soft)
    return losses.double().sum().float(), gradients[0], gradients[1], gradients[2]
