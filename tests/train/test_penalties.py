"""L1, L2 and averages around an optimizer, against their formulas in float64."""

import pytest
import torch
from torch import Tensor, nn

from shoal.core import recipe
from shoal.parallel.shards import whole_shards
from shoal.train.optimizers import build_optimizer
from tests.train.test_optimizers import SETTINGS, Small, loss_of, run_steps

ADAMW = recipe.Optimizer(learning_rate=0.01, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, embedding_rate=2.0)


def gradients_of(model: Small) -> None:
    model.zero_grad()
    loss_of(model).backward()


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("pull", [{"l1": 0.05}, {"l2": 0.3}, {"l1": 0.02, "l2": 0.2}], ids=str)
def test_the_pull_follows_its_formula_beside_adamws(decoupled: bool, pull: dict[str, float]) -> None:
    model, regular = Small(), recipe.Regular(decoupled=decoupled, **pull)
    optimizer = build_optimizer(whole_shards(model), ADAMW, regular)
    values = {name: value.detach().double() for name, value in model.named_parameters()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in values.items()}
    for step in range(1, 6):
        gradients_of(model)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            value, (first, second) = values[name], moments[name]
            matrix = value.dim() == 2
            gradient = parameter.grad.double()
            rate = 0.5 * 0.01 * (2.0 if name.startswith("embedding") else 1.0)
            if matrix and not decoupled:
                gradient = gradient + regular.l2 * value + regular.l1 * value.sign()
            if matrix and decoupled:
                value = value * (1 - rate * regular.l2)
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.95).add_(0.05 * gradient**2)
            value = value * (1 - rate * (0.1 if matrix else 0.0))
            value = value - rate * first / (1 - 0.9**step) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
            if matrix and decoupled:
                value = value.sign() * (value.abs() - rate * regular.l1).clamp(min=0)
            values[name] = value
        optimizer.step(0.5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), values[name], rtol=1e-4, atol=1e-6)


def test_decoupled_l2_is_weight_decay() -> None:
    by_decay, by_pull = Small(), Small()
    run_steps(by_decay, build_optimizer(whole_shards(by_decay), recipe.Optimizer(weight_decay=0.3)), 8)
    bare = recipe.Optimizer(weight_decay=0.0)
    run_steps(by_pull, build_optimizer(whole_shards(by_pull), bare, recipe.Regular(l2=0.3)), 8)
    for left, right in zip(by_decay.parameters(), by_pull.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_a_pull_uses_muons_rate_for_muons_matrices() -> None:
    model = Small()
    settings = recipe.Optimizer(kind="muon", learning_rate=0.01, muon_learning_rate=0.2, weight_decay=0.0)
    optimizer = build_optimizer(whole_shards(model), settings, recipe.Regular(l2=0.5))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    for name, value in model.named_parameters():
        rate = 0.0 if value.dim() == 1 else 0.2 if name.startswith("blocks") else 0.01
        torch.testing.assert_close(value.detach(), before[name] * (1 - 0.5 * rate))


def test_decoupled_l1_ends_at_zero_where_a_subgradient_jumps_over_it() -> None:
    def after(decoupled: bool) -> Tensor:
        model = nn.Module()
        model.weight = nn.Parameter(torch.full((2, 2), 0.003))
        settings = recipe.Optimizer(learning_rate=0.01, weight_decay=0.0)
        optimizer = build_optimizer(whole_shards(model), settings, recipe.Regular(l1=0.1, decoupled=decoupled))
        for _ in range(20):
            model.weight.grad = torch.zeros(2, 2)
            optimizer.step(1.0)
        return model.weight.detach()

    assert not after(True).any()
    assert after(False).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_average_follows_its_formula_around_any_optimizer(name: str) -> None:
    model, bare = Small(), Small()
    optimizer = build_optimizer(whole_shards(model), SETTINGS[name], recipe.Regular(ema=0.4))
    plain = build_optimizer(whole_shards(bare), SETTINGS[name])
    expected = {key: value.detach().double() for key, value in bare.named_parameters()}
    for step in range(1, 7):
        run_steps(model, optimizer, 1)
        run_steps(bare, plain, 1)
        decay = min(0.4, (1 + step) / (10 + step))
        for key, value in bare.named_parameters():
            expected[key] = decay * expected[key] + (1 - decay) * value.detach().double()
    state = optimizer.state_dict()
    for key, value in model.named_parameters():
        assert torch.equal(value, bare.get_parameter(key))  # training itself is as without
        torch.testing.assert_close(state[f"{key}/ema"].double(), expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_from_the_state_is_bitwise_like_never_stopping(name: str) -> None:
    regular = recipe.Regular(l1=0.01, l2=0.1, ema=0.9)
    straight, first, second = Small(), Small(), Small()
    whole = build_optimizer(whole_shards(straight), SETTINGS[name], regular)
    run_steps(straight, whole, 10)
    optimizer = build_optimizer(whole_shards(first), SETTINGS[name], regular)
    run_steps(first, optimizer, 4)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(whole_shards(second), SETTINGS[name], regular)
    resumed.load_state_dict({key: value.clone() for key, value in optimizer.state_dict().items()})
    run_steps(second, resumed, 6)
    for parameter, other in zip(second.parameters(), straight.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())
