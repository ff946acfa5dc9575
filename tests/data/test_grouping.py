"""Rows grouped by length: an order like any other, in which neighbours are alike."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import END, stream_of

from shoal.data.audit import audit
from shoal.data.batch_sizes import BatchSizes
from shoal.data.batches import TrainingBatches
from shoal.data.grouping import POOL, GroupedRows, grouped_at, padded
from shoal.data.order import Order
from shoal.data.pieces import CutDocuments
from shoal.data.plan import Plan
from shoal.data.sequences import Framing


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 900), group=st.integers(1, 9), pool=st.sampled_from([1, 3, POOL]), data=st.data())
def test_every_sample_comes_once_an_epoch_whichever_positions_are_asked_for(
    samples: int, group: int, pool: int, data: st.DataObject
) -> None:
    positions, seed = np.arange(3 * samples, dtype=np.int64), data.draw(st.integers(0, 99))
    order = grouped_at(positions, samples, seed, group, pool)
    for epoch in np.split(order, 3):
        assert sorted(epoch.tolist()) == list(range(samples))
    some = np.array(data.draw(st.lists(st.integers(0, 3 * samples - 1), max_size=20)), dtype=np.int64)
    assert np.array_equal(grouped_at(some, samples, seed, group, pool), order[some])


def test_a_step_reads_neighbours_and_steps_come_in_random_order() -> None:
    samples, group = 10_000, 8
    order = grouped_at(np.arange(3 * samples, dtype=np.int64), samples, 1, group)
    steps = order.reshape(-1, group)
    spread = steps.max(1) - steps.min(1)
    assert np.median(spread) < 2.5 * samples / POOL
    assert np.mean(spread > 10 * samples / POOL) < 0.02  # but where a pool is cut by an epoch's end
    assert abs(np.corrcoef(np.arange(len(steps)), steps.mean(1))[0, 1]) < 0.1
    assert not np.array_equal(order[:samples], order[samples : 2 * samples])
    assert not np.array_equal(order, grouped_at(np.arange(3 * samples, dtype=np.int64), samples, 2, group))


def test_lengths_are_rounded_up_to_few() -> None:
    sizes = np.arange(1, 1025)
    rounded = padded(sizes)
    assert (rounded >= sizes).all()
    assert (rounded % 8 == 0).all()
    assert len(np.unique(rounded[:256])) == 24
    assert len(np.unique(rounded)) == 40
    assert ((rounded - sizes) < np.maximum(8, sizes / 8)).all()


def grouped(tmp_path: Path, count: int = 3000, context: int = 128) -> GroupedRows:
    lengths = np.random.default_rng(0).gamma(1.5, 30, count).astype(int).tolist()
    return GroupedRows(CutDocuments.of(stream_of(tmp_path, lengths, distinct=False), END, context, Framing()))


@pytest.mark.parametrize("strategy", ["interleaved", "blocks"])
def test_little_is_padding_on_any_number_of_ranks_and_they_have_like_work(tmp_path: Path, strategy: str) -> None:
    rows = grouped(tmp_path)
    plan = Plan(rows, Order(1, rows.samples, group=32), BatchSizes.constant(32))
    shuffled = Plan(rows, Order(1, rows.samples), BatchSizes.constant(32))
    assert plan.real_share(32, 8, 2, strategy) > 0.9 > shuffled.real_share(32, 8, 2, strategy)  # type: ignore[arg-type]
    positions = np.zeros((2, 2))
    ranks = [TrainingBatches(rows, plan.order, 32, 8, rank, 2, strategy) for rank in range(2)]  # type: ignore[arg-type]
    for _ in range(60):
        steps = [rank.next_step() for rank in ranks]
        assert [len(batch) for _, batch in steps[0]] == [len(batch) for _, batch in steps[1]]
        for rank, step in enumerate(steps):
            positions[rank] += sum(batch.tokens.size for _, batch in step), sum((b.tokens >= 0).sum() for _, b in step)
    assert positions[:, 0].max() < 1.1 * positions[:, 0].min()
    measured = positions[:, 1].sum() / positions[:, 0].sum()
    assert measured == pytest.approx(plan.real_share(32, 8, 2, strategy), abs=0.02)  # type: ignore[arg-type]


def test_a_run_at_changing_world_sizes_reads_the_same_steps_and_its_ledger_proves_it(tmp_path: Path) -> None:
    rows = grouped(tmp_path, 300)
    order = Order(5, rows.samples, group=12)
    state = None
    seen: list[list[int]] = []
    for world in (1, 3, 2, 4):
        ranks = [TrainingBatches(rows, order, 12, 5, rank, world) for rank in range(world)]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
            rank._read = lambda positions, samples, rank=rank: (  # type: ignore[method-assign]
                seen[-1].extend(samples.tolist()),
                (positions, samples, rows.read(samples, np.zeros(len(samples), dtype=np.uint64))),
            )[-1]
        before = ranks[0].position // 12
        for _ in range(10):
            seen.append([])
            for rank in ranks:
                rank.next_step()
        for rank in ranks:
            rank.recorder.add_up()
        shares = [rank.recorder.share for rank in ranks]
        for rank in ranks:
            rank.recorder.close(before + 10, lambda _, shares=shares: shares)
        state = ranks[0].state_dict()
    positions = np.arange(40 * 12, dtype=np.int64).reshape(40, 12)
    assert [sorted(step) for step in seen] == [
        sorted(step) for step in order.at(positions.reshape(-1)).samples.reshape(40, 12).tolist()
    ]
    found = audit(ranks[0].recorder.ledger)
    assert (found.faults, found.consumed) == ([], 480)


def test_a_run_that_changes_its_global_batch_keeps_its_groups(tmp_path: Path) -> None:
    rows = grouped(tmp_path, 200)
    first = TrainingBatches(rows, Order(5, rows.samples, group=12), 12, 0)
    first.next_step()
    first.recorder.close(1, lambda share: [share])
    second = TrainingBatches(rows, Order(5, rows.samples, group=8), 8, 0)
    second.load_state_dict(first.state_dict())
    for _ in range(40):
        second.next_step()
    second.recorder.close(41, lambda share: [share])
    found = audit(second.recorder.ledger)
    assert (found.faults, found.consumed) == ([], 12 + 320)
