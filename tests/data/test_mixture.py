"""Mixtures: exact shares at every position, each corpus in epochs of its own, and the position as the only state."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import stream_of

from shoal.core.errors import RecipeError
from shoal.data.audit import audit
from shoal.data.ledger import Entry, Ledger, Share, ledger_from, ledger_tree, planned_positions, share_of
from shoal.data.mixture import Mixture, weights_by_size, whole_weights
from shoal.data.order import Order
from shoal.data.rows import MixedRows, StreamRows

WEIGHTS = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any).map(tuple)
STAGES = st.lists(st.tuples(st.integers(0, 60), WEIGHTS), min_size=1, max_size=4)


def mixture_of(stages: list[tuple[int, tuple[int, ...]]], sizes: tuple[int, ...] = (7, 30, 11)) -> Mixture:
    starts = np.cumsum([0, *(length for length, _ in stages[:-1])]).tolist()
    return Mixture.of(("a", "b", "c"), sizes, [(start, weights) for start, (_, weights) in zip(starts, stages, strict=True)])


def asked(mixture: Mixture, count: int) -> np.ndarray:
    """What each corpus should have read before each of the first positions, [count + 1, corpora]."""
    edges = [*(stage.start for stage in mixture.stages), max(count, mixture.stages[-1].start + 1)]
    shares = [
        np.tile(np.array(stage.weights) / sum(stage.weights), (end - start, 1))
        for stage, (start, end) in zip(mixture.stages, pairwise(edges), strict=True)
    ]
    return np.concatenate([np.zeros((1, 3)), np.cumsum(np.concatenate(shares), axis=0)])[: count + 1]


@settings(max_examples=60, deadline=None)
@given(stages=STAGES, seed=st.integers(0, 50))
def test_at_every_position_each_corpus_has_been_read_within_one_of_its_share(
    stages: list[tuple[int, tuple[int, ...]]], seed: int
) -> None:
    mixture = mixture_of(stages)
    positions = np.arange(300, dtype=np.int64)
    picks = mixture.picks(positions, seed)
    read = np.concatenate([np.zeros((1, 3)), np.cumsum(np.eye(3)[picks.corpora], axis=0)])
    assert np.abs(read - asked(mixture, 300)).max() < 1
    assert np.array_equal(picks.before, read[positions, picks.corpora])
    for end in (0, 1, 17, 250, 300):
        assert mixture.read_before(end, seed).tolist() == read[end].tolist()


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.integers(0, 200), min_size=2, max_size=6).filter(any).map(tuple))
def test_long_periods_of_many_corpora_are_as_even(weights: tuple[int, ...]) -> None:
    names = tuple(map(str, range(len(weights))))
    mixture = Mixture.of(names, (5,) * len(weights), [(0, weights)])
    positions = np.arange(2 * sum(weights), dtype=np.int64)
    read = np.cumsum(np.eye(len(weights))[mixture.picks(positions, 1).corpora], axis=0)
    assert np.abs(read - (positions[:, None] + 1) * np.array(weights) / sum(weights)).max() < 1


@settings(max_examples=40, deadline=None)
@given(stages=STAGES, seed=st.integers(0, 50), data=st.data())
def test_any_position_can_be_asked_for_by_itself(
    stages: list[tuple[int, tuple[int, ...]]], seed: int, data: st.DataObject
) -> None:
    order = Order(seed, 48, mixture=mixture_of(stages))
    whole = order.at(np.arange(300, dtype=np.int64))
    some = np.array(data.draw(st.lists(st.integers(0, 299), max_size=20)), dtype=np.int64)
    got = order.at(some)
    assert np.array_equal(order.epochs(some), got.epochs)
    assert np.array_equal(got.samples, whole.samples[some])
    assert np.array_equal(got.epochs, whole.epochs[some])
    far = order.at(np.array([10**12], dtype=np.int64))  # without a replay, which would take days
    assert 0 <= far.samples[0] < 48


@settings(max_examples=40, deadline=None)
@given(stages=STAGES, seed=st.integers(0, 50))
def test_each_corpus_is_read_whole_before_it_is_read_again(stages: list[tuple[int, tuple[int, ...]]], seed: int) -> None:
    order = Order(seed, 48, mixture=mixture_of(stages))
    epochs, samples = order.at(np.arange(400, dtype=np.int64))
    for number, part in enumerate(order.parts):
        here = (samples >= part.first) & (samples < part.first + part.samples)
        read = samples[here] - part.first
        for epoch in range(len(read) // part.samples):
            of_epoch = read[epoch * part.samples : (epoch + 1) * part.samples]
            assert sorted(of_epoch.tolist()) == list(range(part.samples))
            low, high = order.span(number, epoch, 400)
            inside = np.flatnonzero(here & (epochs == epoch))
            assert low <= inside[0]
            assert inside[-1] < high


@pytest.mark.parametrize("world", [2, 3, 5, 10])
def test_each_rank_sees_the_mixture_too(world: int) -> None:
    mixture = Mixture.of(("a", "b"), (100, 100), [(0, (7, 3))])
    corpora = mixture.picks(np.arange(20_000, dtype=np.int64), 1).corpora
    shares = [corpora[rank::world].mean() for rank in range(world)]
    assert shares == pytest.approx([0.3] * world, abs=0.15)


@pytest.mark.parametrize(
    ("given_", "whole"),
    [
        ([0.7, 0.3], (7, 3)),
        ([1, 1, 1], (1, 1, 1)),
        ([0.5, 0.25, 0.25], (2, 1, 1)),
        ([0, 2.5], (0, 1)),
        ([0.333, 0.667], (333, 667)),
    ],
)
def test_weights_are_reduced_to_whole_numbers(given_: list[float], whole: tuple[int, ...]) -> None:
    assert whole_weights(given_) == whole


@pytest.mark.parametrize("given_", [[0.0, 0.0], [-1.0, 2.0], [0.12345, 0.87655], [float("inf"), 1.0]])
def test_weights_that_mean_nothing_or_are_too_fine_are_told(given_: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"'data.weights' has \["):
        whole_weights(given_)


def test_weights_by_size_leave_no_corpus_out() -> None:
    assert weights_by_size((1000, 1000)) == (1, 1)
    weights = weights_by_size((10**9, 1))
    assert min(weights) == 1
    assert sum(weights) <= 1000


def ledger_of(mixture: Mixture, plans: list[tuple[int, int]], seed: int = 3) -> Ledger:
    """A ledger as runs on (steps, ranks) leave it, with 6 sequences a step."""
    order = Order(seed, sum(mixture.samples), mixture=mixture)
    entries, step = [], 0
    for number, (steps, world) in enumerate(plans, 1):
        start, end = step * 6, (step + steps) * 6
        shares = []
        for rank in range(world):
            positions = planned_positions(start, end, 6, rank, world, "interleaved")
            samples = order.at(positions).samples
            shares.append(share_of(positions, samples, positions, samples))
        entries.append(Entry(number, step + 1, step + steps, start, end, 6, "interleaved", tuple(shares)))
        step += steps
    return Ledger(seed, order.samples, 4, "text", step * 6, tuple(entries), mixture=mixture)


@settings(max_examples=30, deadline=None)
@given(stages=STAGES, plans=st.lists(st.tuples(st.integers(1, 15), st.integers(1, 4)), min_size=1, max_size=3))
def test_a_ledger_of_a_mixture_is_proved_and_comes_back_from_disk(
    stages: list[tuple[int, tuple[int, ...]]], plans: list[tuple[int, int]]
) -> None:
    ledger = ledger_of(mixture_of(stages), plans)
    assert ledger_from(ledger_tree(ledger), "here") == ledger
    found = audit(ledger)
    assert (found.faults, found.lost, found.repeated, found.unproven) == ([], 0, 0, 0)
    assert found.consumed == 6 * sum(steps for steps, _ in plans)


def test_what_a_gap_in_a_mixture_lost_is_named_by_corpus() -> None:
    ledger = ledger_of(mixture_of([(60, (1, 1, 1))]), [(2, 1), (3, 2), (4, 1)])
    found = audit(Ledger(**{**vars(ledger), "entries": (ledger.entries[0], ledger.entries[2])}))
    assert found.lost == 18
    assert {fault.split(",")[0] for fault in found.faults[1:]} == {"a", "b", "c"}


def test_other_weights_prove_nothing() -> None:
    ledger = ledger_of(mixture_of([(60, (1, 2, 1))]), [(20, 2)])
    changed = Ledger(**{**vars(ledger), "mixture": mixture_of([(60, (2, 1, 1))])})
    assert audit(changed).unproven == 120
    assert Share() != ledger.entries[0].ranks[0]


def test_a_run_that_goes_on_keeps_its_past_and_may_change_its_future() -> None:
    names, sizes = ("a", "b"), (100, 100)
    begun = Mixture.of(names, sizes, [(0, (7, 3)), (80, (2, 8)), (200, (1, 0))])
    longer = Mixture.of(names, sizes, [(0, (7, 3)), (160, (2, 8)), (400, (1, 0))])
    positions = np.arange(600, dtype=np.int64)
    for at in (0, 30, 90, 123, 500):
        merged = begun.going_on(longer, at)
        assert np.array_equal(merged.picks(positions[:at], 4).corpora, begun.picks(positions[:at], 4).corpora)
        (late,) = np.diff([merged.read_before(end, 4)[0] for end in (510, 610)])
        assert late == 100, "at last the new run's weights hold"
    assert begun.going_on(begun, 123) == begun
    assert begun.going_on(longer, 30) == longer
    assert begun.going_on(longer, 123).stages[1].start == 80
    assert begun.going_on(longer, 123).stages[2].weights == (7, 3)


def test_rows_of_a_mixture_know_which_corpus_they_are_of(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (stream_of(folder, [40] * documents) for folder, documents in zip(folders, (1, 2), strict=True))
    rows = MixedRows((StreamRows(first, 10), StreamRows(second, 10)))
    read = rows.read(np.array([4, 0, 8, 2]), np.zeros(4, dtype=np.uint64))
    assert read.corpora is not None and read.corpora.tolist() == [1, 0, 1, 0]
    assert read.tokens[:, 0].tolist() == [1000, 1000, second.windows(np.array([40]), 1)[0, 0], 1020]
