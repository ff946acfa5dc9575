"""Native matrix products: equal to the formulas in float64, at any number of threads, under autograd and torch.compile."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.core import native
from shoal.core.machine import cpp_compiler
from shoal.core.native import matrices
from shoal.models.loss import IGNORED, by_chunks

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu_erf": F.gelu,
}
SHAPES = [
    (1, 400, 48),
    (95, 16, 16),
    (97, 48, 784),
    (130, 784, 400),
    (777, 80, 112),
    (500, 384, 32),
    (500, 400, 2640),
]  # tokens, width, columns


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take every product, however small, and put the number of threads back."""
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes) + seed))


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor | None) -> list[Tensor]:
    """Output, and the gradients of all inputs that there are."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    direction = random(*output.shape, seed=1).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [x for x in leaves if x is not None], direction)]


def assert_equals_float64(function: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor | None) -> None:
    found = with_gradients(function, *inputs)
    expected = with_gradients(formula, *(None if x is None else x.double() for x in inputs))
    for mine, right in zip(found, expected, strict=True):
        assert mine.shape == right.shape
        assert (mine - right).abs().max() <= 3e-6 * right.abs().max() + 1e-12


def mlp_inputs(tokens: int, width: int, hidden: int, gated: bool, biased: bool) -> list[Tensor | None]:
    up, down = random(hidden, width) / width**0.5, random(width, hidden) / hidden**0.5
    biases = [random(hidden), random(width)] if biased else [None, None]
    gate = [random(hidden, width, seed=2) / width**0.5, random(hidden, seed=2) if biased else None] if gated else []
    return [random(tokens, width), up, biases[0], down, biases[1], *gate]


def native_mlp(kind: str) -> Callable[..., Tensor]:
    def function(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, *gate: Tensor) -> Tensor:
        y = matrices.mlp(x, (up, up_bias), (gate[0], gate[1]) if gate else None, (down, down_bias), kind)
        assert y is not None
        return y

    return function


def mlp_formula(kind: str) -> Callable[..., Tensor]:
    def function(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, *gate: Tensor) -> Tensor:
        inner, act = F.linear(x, up, up_bias), ACTIVATIONS[kind]
        return F.linear(act(F.linear(x, *gate)) * inner if gate else act(inner), down, down_bias)

    return function


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("tokens", "width", "columns"), SHAPES)
def test_a_linear_map_and_its_gradients_equal_float64(tokens, width, columns, biased):
    bias = random(columns) if biased else None
    assert_equals_float64(matrices.linear, F.linear, random(tokens, width), random(columns, width), bias)


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_mlp_and_its_gradients_equal_float64(kind, gated, biased):
    for tokens, width, hidden in ((131, 48, 400), (50, 400, 784)):
        assert_equals_float64(native_mlp(kind), mlp_formula(kind), *mlp_inputs(tokens, width, hidden, gated, biased))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("vocabulary", [16, 65, 1000])
@pytest.mark.parametrize("tokens", [1, 200, 900])
def test_the_cross_entropy_and_its_gradients_equal_float64(tokens, vocabulary, biased, monkeypatch):
    monkeypatch.setattr(matrices, "CHUNK_BYTES", 0)  # 384 tokens at a time
    hidden, weight = random(tokens, 48), random(vocabulary, 48)
    targets = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(3))
    targets[::7] = IGNORED
    bias = random(vocabulary) if biased else None
    found = matrices.cross_entropy(hidden, weight, targets, True, bias)
    expected = by_chunks(hidden.double(), weight.double(), targets, True, bias=bias.double() if biased else None)
    for mine, right in zip(found if biased else found[:3], expected if biased else expected[:3], strict=True):
        torch.testing.assert_close(mine.double(), right.double(), rtol=1e-5, atol=1e-5)
    loss, *gradients = matrices.cross_entropy(hidden, weight, targets, False, bias)
    assert loss == found[0] and gradients == [None, None, None] and biased == (found[3] is not None)


def test_a_target_outside_the_vocabulary_is_refused():
    with pytest.raises(IndexError, match="target 20 is out of a vocabulary of 20"):
        matrices.cross_entropy(random(3, 16), random(20, 16), torch.tensor([1, 20, 2]), True)


def test_results_are_the_same_bits_at_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(matrices, "CHUNK_BYTES", 0)

    def everything() -> list[Tensor]:
        results = with_gradients(matrices.linear, random(700, 400), random(800, 400), random(800))
        results += with_gradients(matrices.linear, random(700, 400), random(2640, 400))  # a large factor, as is the next
        results += matrices.cross_entropy(random(700, 48), random(22000, 48), torch.arange(700), True)[:3]
        results += with_gradients(native_mlp("silu"), *mlp_inputs(700, 400, 800, True, True))
        return [*results, *matrices.cross_entropy(random(700, 48), random(999, 48), torch.arange(700), True, random(999))]

    torch.set_num_threads(1)
    alone = everything()
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, everything(), alone))


def test_inputs_may_be_views_and_have_any_number_of_dims():
    x = random(64, 3, 20).transpose(0, 2)[:, :, :48]
    weight = random(48, 32).T
    torch.testing.assert_close(matrices.linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_what_does_not_suit_goes_to_torch_or_is_declined():
    odd, half = random(40, 24), random(40, 48).bfloat16()
    torch.testing.assert_close(matrices.linear(odd, random(10, 24)), F.linear(odd, random(10, 24)))
    assert matrices.linear(half, random(16, 48).bfloat16()).dtype == torch.bfloat16
    assert matrices.mlp(odd, (random(10, 24), None), None, (random(24, 10), None), "gelu") is None
    assert matrices.cross_entropy(odd, random(10, 24), torch.zeros(40, dtype=torch.int64), True) is None


def test_all_that_the_library_is_built_from_is_in_the_package():
    patterns = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]["shoal"]
    for path in (*native.SOURCES, *native.HEADERS):
        assert f"**/*{path.suffix}" in patterns
    included = {
        word.split('"')[1] for path in native.SOURCES for word in path.read_text().split("#include ") if word[0] == '"'
    }
    assert included and included <= {path.name for path in native.HEADERS}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_shapes_that_do_not_fit_are_torchs_to_refuse(kind):
    x, weight = random(40, 32), random(48, 32)
    with pytest.raises(RuntimeError):
        matrices.linear(x, random(48, 64))
    with pytest.raises(RuntimeError):
        matrices.linear(x, weight, random(40))
    assert matrices.mlp(x, (weight, None), None, (random(64, 48), None), kind) is None
    assert matrices.mlp(x, (weight, None), (random(64, 32), None), (random(32, 48), None), kind) is None
    assert matrices.cross_entropy(x, weight, torch.zeros(40, dtype=torch.int32), True) is None


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_not_a_number_spreads(kind):
    inputs = mlp_inputs(20, 48, 64, False, True)
    inputs[0][3, 5] = float("nan")
    y = native_mlp(kind)(*inputs)
    assert y[3].isnan().all() and not y[[0, 4, 19]].isnan().any()
    loss, dhidden, *_ = matrices.cross_entropy(y, random(100, 48), torch.arange(20), True)
    assert loss.isnan() and dhidden[3].isnan().all() and not dhidden[4].isnan().any()


def test_the_exact_gelu_and_its_slope_are_exact_wherever_they_are_not_nothing():
    x = torch.linspace(-8, 8, 16 * 1500).view(1500, 16)
    identity = torch.eye(16)
    leaf = x.clone().requires_grad_()
    y = native_mlp("gelu_erf")(leaf, identity, None, identity, None)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    precise = x.double().requires_grad_()
    right = precise * torch.erfc(-precise / 2**0.5) / 2
    (right_slope,) = torch.autograd.grad(right.sum(), precise)
    torch.testing.assert_close(y.double(), right, rtol=5e-6, atol=1e-30)  # torch's own is 0 below -5.5
    torch.testing.assert_close(slope.double(), right_slope, rtol=1e-5, atol=5e-7)


def test_large_values_neither_overflow_nor_lose_the_loss():
    values = [-1e12, -1e4, -90.0, -88.4, -87.0, -20.0, -9.0, 0.0, 1.0, 9.0, 20.0, 87.0, 88.4, 90.0, 1e4, 1e12]
    x = torch.tensor(values)[None].repeat(20, 1)
    identity = torch.eye(16)
    for kind, act in ACTIVATIONS.items():
        found = with_gradients(native_mlp(kind), x, identity, None, identity, None)
        expected = with_gradients(mlp_formula(kind), *(v.double() for v in (x, identity)), None, identity.double(), None)
        torch.testing.assert_close(found[0].double(), act(x.double()), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=1e-6)
    far = torch.linspace(-86, 86, 1600).view(100, 16)  # the sigmoid is right in relation to itself, however small
    output = with_gradients(native_mlp("silu"), far, identity, None, identity, None)[0]
    torch.testing.assert_close(output.double(), F.silu(far.double()), rtol=1e-5, atol=0)
    logits = torch.zeros(2, 16)
    logits[0, 3] = 1e5
    loss, *_ = matrices.cross_entropy(logits, identity, torch.tensor([3, 3]), False)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(16.0)).item())


def test_compiled_code_gives_what_eager_code_gives():
    inputs = mlp_inputs(130, 48, 80, True, True)
    both = native_mlp("gelu"), torch.compile(native_mlp("gelu"), fullgraph=True)
    for eager, compiled in zip(*(with_gradients(function, *inputs) for function in both), strict=True):
        assert torch.equal(eager, compiled)


def test_autograd_checks_the_operators():
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    x, up, up_bias, down, down_bias, gate, gate_bias = (v.requires_grad_() for v in mlp_inputs(40, 16, 32, True, True))
    cases = (
        (matrices.linear_forward, (x, up, up_bias)),
        (matrices.mlp_forward, (x, up, up_bias, gate, gate_bias, down, down_bias, 1)),
        (matrices.mlp_forward, (x, up, None, None, None, down, None, 0)),
    )
    for operator, inputs in cases:
        assert torch.library.opcheck(operator, inputs, test_utils=checks) == dict.fromkeys(checks, "SUCCESS")


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradients_pass_through_weights_that_are_frozen(kind, gated):
    x, *weights = mlp_inputs(131, 48, 400, gated, True)
    precise = [weight.double() for weight in weights]
    assert_equals_float64(lambda x: native_mlp(kind)(x, *weights), lambda x: mlp_formula(kind)(x, *precise), x)
    assert_equals_float64(lambda x: matrices.linear(x, *weights[:2]), lambda x: F.linear(x, *precise[:2]), x)
