"""Tokens are drawn from what temperature, top-k and top-p leave, in the right proportions."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.core.seeds import generator
from shoal.serve.sampling import Sampling, draw

# far enough apart that rounding makes no two equal
some_logits = st.lists(st.integers(-160, 160), min_size=1, max_size=12, unique=True).map(
    lambda eighths: torch.tensor(eighths) / 8
)


def draw_one(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    [token] = draw(logits[None], [sampling], [random])
    return token


def allowed(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    """What may be drawn, by the definitions, in float64."""
    order = sorted(range(len(logits)), key=lambda token: -float(logits[token]))
    if sampling.top_k:
        order = order[: sampling.top_k]
    probability = (logits[order].double() / sampling.temperature).softmax(0).tolist()
    kept, total = set(), 0.0
    for token, share in zip(order, probability, strict=True):
        if total >= sampling.top_p + 1e-9:
            break
        kept.add(token)
        total += share
    return kept


@settings(deadline=None, max_examples=150)
@given(
    logits=some_logits,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 15),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_only_what_top_k_and_top_p_leave_is_drawn(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    sampling = Sampling(temperature, top_k, top_p)
    random = generator(seed, "test")
    before = logits.clone()
    assert {draw_one(logits, sampling, random) for _ in range(20)} <= allowed(logits, sampling)
    assert torch.equal(logits, before)


@settings(deadline=None, max_examples=50)
@given(some_logits, st.floats(0, 3))
def test_greedy_top_1_and_a_narrow_nucleus_are_the_likeliest_token(logits: torch.Tensor, temperature: float) -> None:
    likeliest = int(logits.argmax())
    random = generator(1, "test")
    assert draw_one(logits, Sampling(0), random) == likeliest
    assert draw_one(logits, Sampling(temperature, top_k=1), random) == likeliest
    assert draw_one(logits, Sampling(temperature, top_p=1e-9), random) == likeliest


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0), Sampling(0.5), Sampling(3.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.8), Sampling(0.7, 4, 0.9)],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampling: Sampling) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0])
    draws = 3000
    random = generator(1, "test")
    counts = Counter(draw_one(logits, sampling, random) for _ in range(draws))
    kept = sorted(allowed(logits, sampling))
    probability = (logits[kept].double() / sampling.temperature).softmax(0).tolist()
    for token, share in zip(kept, probability, strict=True):
        assert abs(counts[token] - draws * share) < 4 * math.sqrt(draws * share * (1 - share)) + 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-320, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = torch.tensor([-1e4, 5.0, 4.0, 1e4, -3.0])
    assert draw_one(logits, Sampling(temperature), generator(1, "test")) == 3


def test_a_very_high_temperature_is_uniform() -> None:
    random = generator(1, "test")
    counts = Counter(draw_one(torch.tensor([0.0, 50.0]), Sampling(1e30), random) for _ in range(400))
    assert 150 < counts[0] < 250


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; accepted: 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top-k is -1; accepted: 0 or more"),
        ({"top_p": 0.0}, "top-p is 0.0; accepted: above 0, up to 1"),
        ({"top_p": 1.5}, "top-p is 1.5"),
        ({"top_p": math.nan}, "top-p is nan"),
    ],
)
def test_values_outside_their_range_are_refused(values: dict[str, float], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Sampling(**values)  # type: ignore[arg-type]
