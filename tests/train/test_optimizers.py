"""One battery that every optimizer must pass, and each one's formula against its reference."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from shoal.core import recipe
from shoal.core.recipe import Lookahead
from shoal.parallel.codecs import CODECS
from shoal.parallel.coded_all_reduce import CodedAllReduce
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.mesh import Axis, Mesh
from shoal.parallel.momentum import Momentum
from shoal.parallel.shards import whole_shards
from shoal.parallel.wire import Wire
from shoal.train.optimizers import Optimizer, Together, build_delayed_optimizer, build_optimizer
from shoal.train.optimizers.muon import Muon, orthogonalise
from tests.ranks import alone

SETTINGS = {
    "adamw": recipe.Optimizer(kind="adamw", learning_rate=0.02, weight_decay=0.0),
    "muon": recipe.Optimizer(kind="muon", learning_rate=0.02, muon_learning_rate=0.05, weight_decay=0.0),
}
SETTINGS |= {
    f"lookahead-{name}": replace(settings, lookahead=Lookahead(every=3, pull=0.5)) for name, settings in SETTINGS.items()
}


class Small(nn.Module):
    """Parameters named as a Transformer's: matrices of two shapes in blocks, an embedding, vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 4)])
        self.norm = nn.LayerNorm(4)

    def forward(self) -> torch.Tensor:
        x = self.embedding.weight
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.norm(x)


TARGET = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def loss_of(model: Small) -> torch.Tensor:
    return (model() - TARGET).square().mean()


def run_steps(model: Small, optimizer: object, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step(1.0)  # type: ignore[attr-defined]
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", SETTINGS)
def test_it_lowers_the_loss(name: str) -> None:
    model = Small()
    losses = run_steps(model, build_optimizer(whole_shards(model), SETTINGS[name]), 60)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_from_its_state_is_bitwise_like_never_stopping(name: str) -> None:
    straight = Small()
    run_steps(straight, build_optimizer(whole_shards(straight), SETTINGS[name]), 10)
    first = Small()
    optimizer = build_optimizer(whole_shards(first), SETTINGS[name])
    run_steps(first, optimizer, 4)
    state = {key: value.clone() for key, value in optimizer.state_dict().items()}
    second = Small()
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(whole_shards(second), SETTINGS[name])
    resumed.load_state_dict(state)
    run_steps(second, resumed, 6)
    for parameter, other in zip(second.parameters(), straight.parameters(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_share_of_zero_changes_nothing(name: str) -> None:
    model = Small()
    optimizer = build_optimizer(whole_shards(model), SETTINGS[name])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss_of(model).backward()
    optimizer.step(0.0)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_parameter_is_trained(name: str) -> None:
    model = Small()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run_steps(model, build_optimizer(whole_shards(model), SETTINGS[name]), 3)
    assert all(not torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))


def test_adamw_follows_the_papers_formula_in_float64() -> None:
    settings = recipe.Optimizer(learning_rate=0.01, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1)
    model = Small()
    optimizer = build_optimizer(whole_shards(model), settings)
    weight = model.blocks[0].weight
    value = weight.detach().double()
    first = second = torch.zeros_like(value)
    for step in range(1, 6):
        model.zero_grad()
        loss_of(model).backward()
        assert weight.grad is not None
        gradient = weight.grad.double()
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        value = value * (1 - 0.01 * 0.1)
        value -= 0.01 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        optimizer.step(1.0)
        torch.testing.assert_close(weight.detach().double(), value, rtol=1e-5, atol=1e-7)


def test_vectors_are_not_decayed_and_matrices_are() -> None:
    model = Small()
    optimizer = build_optimizer(whole_shards(model), recipe.Optimizer(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step(1.0)
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.dim() == 2 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 32, 8), (2, 8, 32), (1, 5, 7)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_orthogonalising_keeps_the_singular_directions() -> None:
    matrix = torch.randn(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    left, _, right = torch.linalg.svd(matrix)
    inner = left.mT @ orthogonalise(matrix) @ right.mT
    torch.testing.assert_close(inner, torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2)), atol=1e-6, rtol=0)


def test_muon_takes_the_blocks_matrices_and_nothing_else() -> None:
    model = Small()
    state = build_optimizer(whole_shards(model), SETTINGS["muon"]).state_dict()
    assert {name for name in state if name.endswith("/momentum")} == {f"blocks.{i}.weight/momentum" for i in range(4)}


def test_muon_may_iterate_in_bf16_only_where_the_recipe_trains_so() -> None:
    for precision in ("fp32", "bf16"):
        together = build_optimizer(whole_shards(Small()), SETTINGS["muon"], precision=precision)
        assert isinstance(together, Together) and isinstance(together.parts[0], Muon)
        assert together.parts[0].half == (precision == "bf16")


def test_lookahead_pulls_halfway_every_third_step() -> None:
    settings = SETTINGS["lookahead-adamw"]
    model, plain = Small(), Small()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    run_steps(model, build_optimizer(whole_shards(model), settings), 3)
    run_steps(plain, build_optimizer(whole_shards(plain), SETTINGS["adamw"]), 3)
    for parameter, fast, slow in zip(model.parameters(), plain.parameters(), start, strict=True):
        torch.testing.assert_close(parameter.detach(), slow + 0.5 * (fast.detach() - slow))


@pytest.mark.parametrize("each", [1, 3])
def test_delayed_nesterov_takes_adams_nesterov_step_in_parts(each: int) -> None:
    # equal gradients within a cycle are one step of Dozat's Adam with Nesterov's momentum, written down plainly
    settings = recipe.Optimizer(learning_rate=0.1, weight_decay=0.0, beta1=0.9, beta2=0.95)
    model = nn.Module()
    model.weight = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3))
    optimizer = build_delayed_optimizer(each, settings, whole_shards(model))
    expected, m, v = model.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    for step in range(1, 6):
        gradient = torch.cos(expected * step)
        for _ in range(each):
            model.weight.grad = gradient.clone()
            optimizer.step(0.5)
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        direction = 0.9 * m / (1 - 0.9 ** (step + 1)) + 0.1 * gradient / (1 - 0.9**step)
        expected -= 0.05 * direction / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
        torch.testing.assert_close(model.weight.detach(), expected)


def test_single_pushes_that_cancel_each_other_move_no_further_than_others() -> None:
    # workers' gradients differ in sign, and their mean may be nearly nothing where each of them is not
    settings = recipe.Optimizer(learning_rate=0.1, weight_decay=0.0, beta1=0.9, beta2=0.95)
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer = build_delayed_optimizer(2, settings, whole_shards(model))
    for gradient in (1.0, -0.999, 0.001, 1.0, -1.0, -1.0):
        before = model.weight.detach().clone()
        model.weight.grad = torch.full((2, 3), gradient, dtype=torch.float64)
        optimizer.step(1.0)
        assert (model.weight.detach() - before).abs().max() < 0.2


@pytest.mark.parametrize("name", ["adamw", "muon", "lookahead-adamw"])
@pytest.mark.parametrize("pushes", [4, 5])
def test_an_optimizer_of_single_pushes_goes_on_bitwise_in_mid_cycle(name: str, pushes: int) -> None:
    def build(model: Small) -> Optimizer:
        return build_delayed_optimizer(3, SETTINGS[name], whole_shards(model))

    model, resumed = Small(), Small()
    optimizer = build(model)
    run_steps(model, optimizer, pushes)
    resumed.load_state_dict(model.state_dict())
    again = build(resumed)
    again.load_state_dict({key: value.clone() for key, value in optimizer.state_dict().items()})
    assert run_steps(model, optimizer, 5) == run_steps(resumed, again, 5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_single_pushes_lower_the_loss_as_whole_steps_do(name: str) -> None:
    losses = []
    for each in (1, 2):
        model = Small()
        losses.append(run_steps(model, build_delayed_optimizer(each, SETTINGS[name], whole_shards(model)), 20 * each)[-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_onebit_adam_is_adam_until_its_variance_is_frozen() -> None:
    settings = replace(SETTINGS["adamw"], kind="onebit_adam", onebit_warmup=3, weight_decay=0.1)
    model, wire = Small(), Wire(alone())
    sync = CodedAllReduce(wire, Mesh(), lambda places: CodedSum(wire, Axis(), CODECS["sign"](recipe.Codec())))
    sync.momentum = Momentum(settings.beta1, settings.onebit_warmup, ranks=1)
    sync.attach(model, whole_shards(model))
    optimizer = build_optimizer(sync.shards, settings)
    expected = Small().double()
    first = {name: torch.zeros_like(value) for name, value in expected.named_parameters()}
    second = {name: torch.zeros_like(value) for name, value in expected.named_parameters()}
    for step in range(1, 8):
        sync.begin_backward(last=True)
        loss_of(model).backward()
        sync.before_step()
        sync.scale_grads(0.5)
        optimizer.step(1.0)
        sync.after_step()
        expected.zero_grad()
        loss_of(expected).backward()
        for name, value in expected.named_parameters():
            assert value.grad is not None
            gradient, warm = 0.5 * value.grad, min(step, settings.onebit_warmup)
            first[name].lerp_(gradient, 1 - settings.beta1)
            if step <= settings.onebit_warmup:
                second[name].lerp_(gradient.square(), 1 - settings.beta2)
            spread = (second[name] / (1 - settings.beta2**warm)).sqrt() + settings.epsilon
            value.data.mul_(1 - settings.learning_rate * (0.1 if value.dim() == 2 else 0.0))
            value.data.sub_(settings.learning_rate * first[name] / (1 - settings.beta1**step) / spread)
        for name, value in model.named_parameters():
            torch.testing.assert_close(value.double(), expected.get_parameter(name), rtol=1e-4, atol=1e-6)
