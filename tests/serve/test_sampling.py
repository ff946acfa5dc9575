"""Tokens are drawn from what temperature, top-k, top-p and min-p leave, in the right proportions."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.core.native import available
from shoal.core.seeds import generator
from shoal.serve import sampling as sampling_module
from shoal.serve.sampling import Sampling, draw, likeliest, penalise

# far enough apart that rounding makes no two equal
some_logits = st.lists(st.integers(-160, 160), min_size=1, max_size=12, unique=True).map(
    lambda eighths: torch.tensor(eighths) / 8
)


@pytest.mark.parametrize("library", [True, False])
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_likeliest_token_is_the_first_of_the_largest_logit_and_none_where_there_is_no_number(
    library: bool, data: st.DataObject
) -> None:
    rows, vocabulary, rounded = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 700)), data.draw(st.integers(0, 9))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    # few values, so that many are equal
    logits = torch.randint(-3, 4, (rows, vocabulary + rounded), generator=random).float()[:, :vocabulary]
    kinds = st.sampled_from([math.nan, math.inf, -math.inf, None])
    strange = [data.draw(kinds) for _ in range(rows)]
    for row, value in enumerate(strange):
        if value is not None:
            logits[row, data.draw(st.integers(0, vocabulary - 1))] = value
    with pytest.MonkeyPatch.context() as patch:
        if library:
            assert available()
        else:
            patch.setattr(sampling_module, "brief", lambda: None)
        found = likeliest(logits)
    for row, value in enumerate(strange):
        numbers = logits[row].tolist()
        impossible = value is not None and (value != -math.inf or vocabulary == 1)
        assert found[row] == (-1 if impossible else numbers.index(max(numbers)))


def draw_one(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    return draw_many(logits, sampling, random, 1)[0]


def draw_many(logits: torch.Tensor, sampling: Sampling, random: torch.Generator, times: int) -> list[int]:
    return draw(logits.expand(times, -1), [sampling] * times, [random] * times)


def allowed(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    """What may be drawn, by the definitions, in float64."""
    order = sorted(range(len(logits)), key=lambda token: -float(logits[token]))
    if sampling.top_k:
        order = order[: sampling.top_k]
    probability = (logits[order].double() / sampling.temperature).softmax(0).tolist()
    kept, total = set(), 0.0
    for token, share in zip(order, probability, strict=True):
        # sums are rounded
        if total >= sampling.top_p + 1e-6 or share < probability[0] * sampling.min_p * (1 - 1e-6):
            break
        kept.add(token)
        total += share
    return kept


@settings(deadline=None, max_examples=100)
@given(
    logits=some_logits,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 15),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_only_what_top_k_top_p_and_min_p_leave_is_drawn(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    random = generator(seed, "test")
    before = logits.clone()
    assert {*draw_many(logits, sampling, random, 20)} <= allowed(logits, sampling)
    assert torch.equal(logits, before)


samplings = st.builds(
    Sampling, st.sampled_from([0, 0.5, 1.0, 2.0]), st.integers(0, 40), st.floats(0.01, 1), st.sampled_from([0, 0.01, 0.3])
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(samplings, st.integers(0, 99)), min_size=1, max_size=5), st.sampled_from([3, 256, 257, 3000]))
def test_each_row_gets_what_it_gets_alone(rows: list[tuple[Sampling, int]], vocabulary: int) -> None:
    logits_RV = torch.randn(len(rows), vocabulary, generator=generator(1, "logits")) * 3
    streams = [generator(seed, "test") for _, seed in rows]
    together = draw(logits_RV, [sampling for sampling, _ in rows], streams)
    assert together == [
        draw_one(logits_V, sampling, generator(seed, "test"))
        for logits_V, (sampling, seed) in zip(logits_RV, rows, strict=True)
    ]


def test_a_wide_nucleus_of_a_large_vocabulary_is_all_that_it_should_be() -> None:
    logits = torch.randn(5000, generator=generator(1, "logits"))
    sampling, random = Sampling(1.0, top_p=0.9), generator(1, "test")
    within = allowed(logits, sampling)
    assert 2100 < len(within) < 4900  # more than are sorted at first, and at second
    drawn = Counter(draw_many(logits, sampling, random, 1000))
    assert drawn.keys() <= within
    rare = sorted(within, key=lambda token: float(logits[token]))[: len(within) // 2]
    share = float(logits.double().softmax(0)[rare].sum() / logits.double().softmax(0)[sorted(within)].sum())
    assert sum(drawn[token] for token in rare) / 1000 == pytest.approx(share, abs=0.05)


def test_a_penalty_makes_what_was_seen_less_likely() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0])
    assert penalise(logits, [0, 1, 0], 2.0).tolist() == [1.0, -2.0, 0.5, 0.0]
    assert logits.tolist() == [2.0, -1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("penalty", "among"), [(1e-320, {0, 1}), (1e-40, {0, 1}), (1e39, {0, 1, 3, 4}), (1e308, {0, 1, 3, 4})]
)
def test_an_absurd_penalty_still_leaves_something_to_draw(penalty: float, among: set[int]) -> None:
    logits = penalise(torch.tensor([8.0, 5.0, -1.0, 0.5, 0.0]), [0, 1, 2], penalty)
    assert {*draw_many(logits, Sampling(0.5), generator(1, "test"), 50)} == among


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
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(3.0),
        Sampling(1.0, top_k=3),
        Sampling(1.0, top_p=0.8),
        Sampling(0.7, 4, 0.9),
        Sampling(1.0, min_p=0.2),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampling: Sampling) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0])
    draws = 3000
    random = generator(1, "test")
    counts = Counter(draw_many(logits, sampling, random, draws))
    kept = sorted(allowed(logits, sampling))
    probability = (logits[kept].double() / sampling.temperature).softmax(0).tolist()
    for token, share in zip(kept, probability, strict=True):
        assert abs(counts[token] - draws * share) < 4 * math.sqrt(draws * share * (1 - share)) + 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-320, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = torch.tensor([-1e4, 5.0, 4.0, 1e4, -3.0])
    assert draw_one(logits, Sampling(temperature), generator(1, "test")) == 3


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_very_high_temperature_is_uniform_among_what_may_be_said(temperature: float) -> None:
    random = generator(1, "test")
    counts = Counter(draw_many(torch.tensor([0.0, 50.0, -math.inf]), Sampling(temperature), random, 400))
    assert 150 < counts[0] < 250
    assert counts[2] == 0


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
        ({"min_p": -0.1}, "min-p is -0.1; accepted: from 0 to 1"),
        ({"min_p": math.nan}, "min-p is nan"),
        ({"repetition_penalty": 0.0}, "repetition penalty is 0.0; accepted: above 0"),
        ({"repetition_penalty": math.nan}, "repetition penalty is nan"),
        ({"repetition_penalty": math.inf}, "repetition penalty is inf"),
    ],
)
def test_values_outside_their_range_are_refused(values: dict[str, float], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Sampling(**values)  # type: ignore[arg-type]
