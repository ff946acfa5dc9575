"""Who reads what: every sequence once an epoch, in the same global order at every world size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.partition import rank_positions, samples_at, shuffled


@given(samples=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
def test_the_shuffle_is_a_permutation(samples: int, key: int) -> None:
    assert sorted(shuffled(np.arange(samples), samples, key)) == list(range(samples))


@pytest.mark.parametrize("strategy", ["interleaved", "blocks"])
@given(data=st.data(), world=st.integers(1, 9), start=st.integers(0, 10**12))
def test_ranks_together_read_a_step_exactly_once(strategy: str, data: st.DataObject, world: int, start: int) -> None:
    batch = data.draw(st.integers(world, 100))
    shares = [rank_positions(start, batch, rank, world, strategy) for rank in range(world)]  # type: ignore[arg-type]
    assert sorted(np.concatenate(shares)) == list(range(start, start + batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("strategy", ["interleaved", "blocks"])
@settings(max_examples=25)
@given(samples=st.integers(1, 200), batch=st.integers(4, 40), seed=st.integers(0, 1000))
def test_a_run_that_changes_its_world_size_repeats_and_skips_nothing(
    strategy: str, samples: int, batch: int, seed: int
) -> None:
    steps = -(-3 * samples // batch)
    seen: list[int] = []
    for step in range(steps):
        world = (1, 2, 4, 3)[step % 4]
        shares = [rank_positions(step * batch, batch, rank, world, strategy) for rank in range(world)]  # type: ignore[arg-type]
        positions = np.sort(np.concatenate(shares))
        seen += samples_at(positions, samples, seed).tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    positions = np.arange(1000, dtype=np.int64)
    first = samples_at(positions, 1000, seed=1)
    assert not np.array_equal(first, samples_at(positions, 1000, seed=2))
    assert not np.array_equal(first, samples_at(positions + 1000, 1000, seed=1))
    assert np.array_equal(first, samples_at(positions, 1000, seed=1))


def test_the_order_has_no_visible_structure() -> None:
    order = shuffled(np.arange(4096), 4096, 7)
    correlation = np.corrcoef(np.arange(4096), order)[0, 1]
    neighbours = np.mean(np.abs(np.diff(order)) == 1)
    assert abs(correlation) < 0.06
    assert neighbours < 0.01


def test_the_order_is_fixed_for_ever() -> None:
    """Another order would break every checkpoint's promise to go on where it stopped."""
    assert samples_at(np.arange(8, dtype=np.int64), 1000, seed=1).tolist() == [63, 968, 894, 928, 132, 548, 456, 56]
