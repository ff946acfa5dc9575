"""The cost model is arithmetic that must make sense whatever goes in; the bench holds it against measurements."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.parallel.cost import Compute, Traffic, step_seconds
from shoal.parallel.link import Link

LINK = Link(bandwidth=1e6, latency=1e-3)
COMPUTE = Compute(forward=1.0, backward=2.0, update=0.5)

traffics = st.builds(
    Traffic,
    sent=st.floats(0, 1e9),
    hops=st.integers(1, 14),
    messages=st.integers(1, 50),
    work=st.floats(0, 1),
    every=st.integers(1, 50),
    overlap=st.integers(0, 5),
    last=st.floats(0, 1),
)


@given(traffic=traffics, ranks=st.integers(2, 8))
def test_a_step_takes_at_least_what_is_computed_and_at_most_all_one_after_the_other(traffic: Traffic, ranks: int) -> None:
    seconds = step_seconds(COMPUTE, traffic, LINK, ranks)
    travel = LINK.seconds(traffic.sent, traffic.hops)
    most = COMPUTE.total + traffic.work + travel + 2 * (ranks - 1) * LINK.latency
    assert COMPUTE.total <= seconds <= most * (1 + 1e-9)


@given(traffic=traffics, ranks=st.integers(2, 8), factor=st.floats(1, 100))
def test_a_slower_link_never_makes_a_step_shorter(traffic: Traffic, ranks: int, factor: float) -> None:
    slower = Link(LINK.bandwidth / factor, LINK.latency * factor)
    assert step_seconds(COMPUTE, traffic, slower, ranks) >= step_seconds(COMPUTE, traffic, LINK, ranks) * (1 - 1e-9)


@given(traffic=traffics)
def test_alone_nothing_is_sent(traffic: Traffic) -> None:
    assert step_seconds(COMPUTE, traffic, LINK, 1) == COMPUTE.total


def test_what_backward_cannot_hide_is_the_last_message_or_the_rest_of_a_busy_link() -> None:
    free = Link(1e6, 0.0)
    hidden, busy = Traffic(sent=1e6, hops=1, messages=10), Traffic(sent=10e6, hops=1, messages=10)
    assert step_seconds(COMPUTE, hidden, free, 2) == pytest.approx(3.5 + 0.1)
    assert step_seconds(COMPUTE, busy, free, 2) == pytest.approx(3.5 + 10 - 1.8)
    assert step_seconds(COMPUTE, replace(hidden, last=0.25), free, 2) == pytest.approx(3.5 + 0.25)


def test_encoding_takes_longer_on_a_core_that_others_have_as_well() -> None:
    free, half = Link(1e6, 0.0), replace(COMPUTE, core=0.5)
    for traffic in (Traffic(0, 1, work=1.0), Traffic(0, 1, work=4.0, every=4), Traffic(0, 1, work=4.0, every=4, overlap=1)):
        assert step_seconds(COMPUTE, traffic, free, 2) == pytest.approx(3.5 + 1)
        assert step_seconds(half, traffic, free, 2) == pytest.approx(3.5 + 2)


def test_ranks_that_meet_seldom_share_the_cost_of_a_meeting_among_steps() -> None:
    free = Link(1e6, 0.0)
    blocking = Traffic(sent=8e6, hops=1, every=10, work=1.0)
    assert step_seconds(COMPUTE, blocking, free, 2) == pytest.approx(3.5 + 0.9)
    streaming = replace(blocking, messages=2, overlap=1)  # 4 s a fragment, of which a step hides 3.5
    assert step_seconds(COMPUTE, streaming, free, 2) == pytest.approx(3.5 + 0.2)
