"""The ledger: what was really read, small, in any order, and proved against the plan."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import CorpusError, InputError
from shoal.data import audit as auditing
from shoal.data import ledger as recording
from shoal.data.audit import audit
from shoal.data.batches import TrainingBatches
from shoal.data.ledger import (
    STRAYS_KEPT,
    Entry,
    Ledger,
    Share,
    is_earlier,
    ledger_from,
    ledger_tree,
    planned_positions,
    read_ledger,
    reading_hashes,
    share_of,
    with_entry,
    write_ledger,
)
from shoal.data.order import Order
from shoal.data.partition import rank_positions, samples_at
from shoal.data.rows import StreamRows

CONTEXT, SEED = 4, 3


class Zeros:
    """A stream of so many samples, of nothing."""

    def __init__(self, samples: int) -> None:
        self.tokens, self.fingerprint = samples * CONTEXT + 1, "zeros"

    def windows(self, starts: Any, length: int) -> Any:
        return np.zeros((len(starts), length), dtype=np.int64)


def batches_of(samples: int, batch: int, micro_batch: int, *division: Any, **sizes: Any) -> TrainingBatches:
    """Batches of nothing."""
    rows = StreamRows(Zeros(samples), CONTEXT)  # type: ignore[arg-type]
    return TrainingBatches(rows, Order(SEED, samples), batch, micro_batch, *division, **sizes)


Alter = Callable[[int, Any, Any], tuple[Any, Any]]
"""(step, positions, samples) to what is read instead."""


def session(
    state: dict[str, Any] | None,
    steps: int,
    *,
    samples: int = 50,
    batch: int = 6,
    world: int = 2,
    strategy: Any = "interleaved",
    every: int = 3,
    wrong: dict[int, Alter] | None = None,
) -> dict[str, Any]:
    """Read some steps on `world` ranks, closing an entry `every` so many and at the end; returns the state at the end."""
    ranks = [batches_of(samples, batch, 2, rank, world, strategy) for rank in range(world)]
    for rank, batches in enumerate(ranks):
        if state is not None:
            batches.load_state_dict(json.loads(json.dumps(state)))
        if wrong and rank in wrong:
            alter(batches, wrong[rank])
    before = ranks[0].position // batch
    for step in range(before + 1, before + steps + 1):
        for batches in ranks:
            batches.next_step()
        if step % every == 0 or step == before + steps:
            for batches in ranks:
                batches.recorder.add_up()
            shares = [batches.recorder.share for batches in ranks]
            for batches in ranks:
                batches.recorder.close(step, lambda _, shares=shares: shares)
    states = [batches.state_dict() for batches in ranks]
    assert all(other == states[0] for other in states), "ranks keep different ledgers"
    return states[0]


def alter(batches: TrainingBatches, change: Alter) -> None:
    """Let a rank read something else."""
    read = batches._read
    batches._read = lambda positions, samples: read(  # type: ignore[method-assign]
        *change(batches.position // batches.global_batch + 1, positions, samples)
    )


def ledger_of(state: dict[str, Any]) -> Ledger:
    return ledger_from(state["ledger"], "the state")


def at(step: int, change: Callable[[Any, Any], tuple[Any, Any]]) -> Alter:
    """Alter the first micro-batch of one step."""
    todo = [step]

    def once(now: int, positions: Any, samples: Any) -> tuple[Any, Any]:
        if todo == [now]:
            todo.clear()
            return change(positions.copy(), samples.copy())
        return positions, samples

    return once


def sample_at(position: int, samples: int = 50) -> int:
    return int(samples_at(np.array([position]), samples, SEED)[0])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), strategy=st.sampled_from(["interleaved", "blocks"]), samples=st.integers(1, 60))
def test_a_run_over_any_sessions_and_world_sizes_is_proved_whole(data: st.DataObject, strategy: str, samples: int) -> None:
    state, position = None, 0
    plans = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(4, 9)), min_size=1, max_size=4))
    for steps, world, batch in plans:
        state = session(state, steps, samples=samples, world=world, strategy=strategy, batch=6, every=batch)
        position += steps * 6
    ledger = ledger_of(state)  # type: ignore[arg-type]
    found = audit(ledger)
    assert (found.faults, found.lost, found.repeated, found.unproven) == ([], 0, 0, 0)
    assert found.consumed == ledger.position == position
    assert [entry.session for entry in ledger.entries] == list(range(1, len(plans) + 1))
    assert all(found.sound)


def test_the_global_batch_may_change_between_sessions() -> None:
    state = session(None, 4, batch=6)
    ranks = batches_of(50, 9, 0)
    ranks.load_state_dict(state)
    ranks.next_step()
    ranks.recorder.close(5, lambda share: [share])
    found = audit(ranks.recorder.ledger)
    assert (found.consumed, found.faults) == (33, [])


def test_a_session_of_any_length_is_one_small_entry(tmp_path: Path) -> None:
    short, long = (ledger_of(session(None, steps, every=1)) for steps in (2, 500))
    assert len(long.entries) == 1
    write_ledger(tmp_path / "short.json", short)
    write_ledger(tmp_path / "long.json", long)
    assert (tmp_path / "long.json").stat().st_size < (tmp_path / "short.json").stat().st_size + 40 < 800
    assert len((tmp_path / "long.json").read_text().splitlines()) == 10
    assert read_ledger(tmp_path / "long.json") == long


def test_what_is_read_is_added_up_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = session(None, 40, every=40)
    monkeypatch.setattr(recording, "READINGS_HELD", 10)
    assert session(None, 40, every=40) == plain
    batches = batches_of(50, 6, 2)
    for _ in range(40):
        batches.next_step()
        assert batches.recorder.held_count < 10


@given(data=st.data(), count=st.integers(1, 60))
def test_a_digest_depends_on_what_was_read_not_on_the_order_or_where_it_is_cut(data: st.DataObject, count: int) -> None:
    positions = np.arange(count, dtype=np.int64)
    samples = samples_at(positions, 40, SEED)
    order = np.array(data.draw(st.permutations(range(count))))
    whole = share_of(positions, samples, positions, samples)
    assert share_of(positions[order], samples[order], positions, samples) == whole
    assert (whole.unplanned, whole.missing) == ((), ())
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, count), max_size=5))), count]
    pieces = [slice(*edges) for edges in pairwise(cuts)]
    shares = [share_of(positions[cut], samples[cut], positions[cut], samples[cut]) for cut in pieces]
    assert reduce(add, shares) == reduce(add, reversed(shares)) == whole
    changed = samples.copy()
    changed[data.draw(st.integers(0, count - 1))] += data.draw(st.integers(1, 100))
    assert share_of(positions, changed, positions, samples).digest != whole.digest


def test_hashes_tell_positions_and_samples_apart() -> None:
    grid = np.indices((300, 300)).reshape(2, -1)
    assert len(np.unique(reading_hashes(grid[0], grid[1]))) == 90_000


def test_the_hash_is_fixed_for_ever() -> None:
    """Another one would make every ledger that was ever written look wrong."""
    hashes = reading_hashes(np.array([0, 1, 2]), np.array([0, 0, 7]))
    assert hashes.tolist() == [5197578548964807871, 15916886550466581944, 3270201391739464176]


def entry(session: int, first: int, last: int, world: int = 2) -> Entry:
    return Entry(session, first, last, (first - 1) * 6, last * 6, 6, "blocks", (Share(3, 5),) * world)


@given(cuts=st.sets(st.integers(1, 29), max_size=10), other=st.integers(0, 10))
def test_entries_of_a_session_that_continue_each_other_are_one(cuts: set[int], other: int) -> None:
    edges = [0, *sorted(cuts), 30]
    entries: tuple[Entry, ...] = ()
    for low, high in pairwise(edges):
        entries = with_entry(entries, entry(1, low + 1, high))
    assert [(one.first_step, one.last_step, one.end_position) for one in entries] == [(1, 30, 180)]
    assert entries[0].ranks[0].count == 3 * (len(edges) - 1)


def test_entries_that_do_not_continue_each_other_stay_apart() -> None:
    for after in (entry(2, 4, 5), entry(1, 5, 6), entry(1, 4, 5, world=3), replace(entry(1, 4, 5), strategy="interleaved")):
        assert with_entry((entry(1, 1, 3),), after) == (entry(1, 1, 3), after)


def read_twice(positions: Any, samples: Any) -> tuple[Any, Any]:
    return np.concatenate([positions, positions[:1]]), np.concatenate([samples, samples[:1]])


def test_a_wrong_sample_is_named_with_its_rank_step_and_session() -> None:
    def first_again(positions: Any, samples: Any) -> tuple[Any, Any]:
        samples[1] = sample_at(0)
        return positions, samples

    state = session(session(None, 2), 5, wrong={1: at(5, first_again)})
    found = audit(ledger_of(state))
    # rank 1 of two reads positions 25, 27, 29 at step 5
    assert found.faults == [
        f"session 2, rank 1, step 5: read sample {sample_at(0)} instead of {sample_at(27)} (position 27)",
        f"epoch 1: 1 sample ({sample_at(27)}) lost",
        f"epoch 1: 1 sample ({sample_at(0)}) repeated",
    ]
    assert (found.consumed, found.lost, found.repeated, found.unproven) == (42, 1, 1, 0)
    assert found.sound == [True, False]


def test_reading_ahead_changes_nothing_and_is_forgotten_where_a_run_goes_on() -> None:
    def read(batches: TrainingBatches, ahead: bool) -> list[tuple[int, list[list[int]]]]:
        found = [(at, rows.tokens.tolist()) for at, rows in batches.next_step()]
        if ahead:
            batches.read_ahead()
            batches.read_ahead()
        return found

    plain, ahead = batches_of(50, 6, 4, 1, 2), batches_of(50, 6, 4, 1, 2)
    beginning = plain.state_dict()
    first = [read(plain, False) for _ in range(4)]
    assert [read(ahead, True) for _ in range(4)] == first
    for batches in (plain, ahead):
        batches.close(4, lambda share: [share, share])
    assert ahead.state_dict() == plain.state_dict()
    assert read(ahead, True) == read(plain, False)
    ahead.load_state_dict(beginning)
    assert read(ahead, False) == first[0]


def test_rows_that_can_t_be_read_ahead_fail_where_they_are_needed() -> None:
    batches = batches_of(50, 6, 4)
    batches.next_step()
    read, failing = batches._read, [True]

    def fail_once(positions: Any, samples: Any) -> Any:
        if failing.pop() if failing else False:
            raise CorpusError("gone")
        return read(positions, samples)

    batches._read = fail_once  # type: ignore[method-assign]
    batches.read_ahead()
    assert not failing
    assert [at for at, _ in batches.next_step()] == [6, 10]
    failing.append(True)
    with pytest.raises(CorpusError, match="gone"):
        batches.next_step()


def test_a_sample_read_twice_or_left_out_is_named() -> None:
    leave_out = at(3, lambda positions, samples: (positions[1:], samples[1:]))
    found = audit(ledger_of(session(None, 4, wrong={0: at(2, read_twice), 1: leave_out})))
    assert found.faults == [
        f"session 1, rank 0, step 2: read sample {sample_at(6)} beside its own share (position 6)",
        f"session 1, rank 1, step 3: did not read sample {sample_at(13)} (position 13)",
        f"epoch 1: 1 sample ({sample_at(13)}) lost",
        f"epoch 1: 1 sample ({sample_at(6)}) repeated",
    ]
    assert (found.consumed, found.lost, found.repeated) == (24, 1, 1)


def test_a_rank_that_reads_another_s_share_is_found_however_much_it_was() -> None:
    def others(step: int, positions: Any, samples: Any) -> tuple[Any, Any]:
        return positions - 1, samples_at(positions - 1, 50, SEED)

    ledger = ledger_of(session(None, 8, wrong={1: others}))
    assert all(
        len(share.unplanned) <= STRAYS_KEPT and len(share.missing) <= STRAYS_KEPT for share in ledger.entries[0].ranks
    )
    found = audit(ledger)
    assert "session 1, rank 1, steps 1–8: read other samples than its own, more than is named above" in found.faults
    assert f"session 1, rank 1, step 1: did not read sample {sample_at(1)} (position 1)" in found.faults
    assert found.lost >= STRAYS_KEPT
    assert found.repeated >= STRAYS_KEPT
    assert found.unproven == 24


def without(ledger: Ledger, number: int) -> Ledger:
    return replace(ledger, entries=ledger.entries[:number] + ledger.entries[number + 1 :])


def three_sessions() -> Ledger:
    state = None
    for steps, world in ((3, 2), (4, 1), (5, 3)):
        state = session(state, steps, world=world)
    return ledger_of(state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "told", "lost"),
    [
        (0, "positions 0–17 are in no entry, between the run's begin and session 2 (steps 4–7)", 18),
        (1, "positions 18–41 are in no entry, between session 1 (steps 1–3) and session 3 (steps 8–12)", 24),
        (2, "positions 42–71 are in no entry, after session 2 (steps 4–7)", 30),
    ],
)
def test_a_gap_is_named_and_what_it_held_is_lost(number: int, told: str, lost: int) -> None:
    found = audit(without(three_sessions(), number))
    assert found.faults[0] == told
    assert (found.lost, found.repeated, found.consumed) == (lost, 0, 72 - lost)


def test_an_overlap_is_named_and_what_it_held_is_repeated() -> None:
    ledger = three_sessions()
    found = audit(replace(ledger, entries=(*ledger.entries[:2], ledger.entries[1], ledger.entries[2])))
    assert found.faults[0] == "positions 18–41 are in two entries, session 2 (steps 4–7) and session 2 (steps 4–7)"
    assert (found.lost, found.repeated) == (0, 24)
    assert found.sound == [True, True, False, True]


def test_a_ledger_that_ends_elsewhere_than_the_run_is_told() -> None:
    found = audit(replace(three_sessions(), position=60))
    assert found.faults == ["session 3 (steps 8–12) ends at position 72, the run at 60"]


def test_a_digest_that_nothing_explains_leaves_its_samples_unproven() -> None:
    ledger = three_sessions()
    other = replace(ledger.entries[2].ranks[1], digest=1)
    ranks = (ledger.entries[2].ranks[0], other, ledger.entries[2].ranks[2])
    found = audit(replace(ledger, entries=(*ledger.entries[:2], replace(ledger.entries[2], ranks=ranks))))
    assert found.faults == ["session 3, rank 1, steps 8–12: read other samples than its own"]
    assert (found.unproven, found.sound) == (10, [True, True, False])


def test_large_epochs_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "SAMPLES_AT_ONCE", 7)
    monkeypatch.setattr(auditing, "POSITIONS_AT_ONCE", 13)
    assert audit(three_sessions()).faults == []
    found = audit(without(three_sessions(), 1))
    assert (found.lost, found.repeated) == (24, 0)


def test_another_seed_or_corpus_size_proves_nothing() -> None:
    assert audit(replace(three_sessions(), seed=4)).unproven == 72
    assert audit(replace(three_sessions(), samples=49)).unproven > 0


@pytest.mark.parametrize("strategy", ["interleaved", "blocks"])
def test_the_plan_of_many_steps_is_that_of_each(strategy: Any) -> None:
    steps = [rank_positions(start, 7, 1, 3, strategy) for start in (14, 21, 28)]
    assert planned_positions(14, 35, 7, 1, 3, strategy).tolist() == np.concatenate(steps).tolist()


def test_a_run_does_not_go_on_with_another_text_or_context() -> None:
    state = session(None, 2)
    for key, value in (("corpus", "another"), ("context", 5)):
        altered = {**state, "ledger": {**state["ledger"], key: value}}
        with pytest.raises(CorpusError, match="another text"):
            batches_of(50, 6, 2).load_state_dict(altered)


def test_a_run_without_a_ledger_goes_on_and_its_ledger_says_from_where() -> None:
    state = session(None, 2)
    del state["ledger"]
    found = audit(ledger_of(session(state, 3)))
    assert found.faults[0] == "positions 0–11 are in no entry, between the run's begin and session 1 (steps 3–5)"
    assert found.lost == 12


def test_an_earlier_state_of_a_ledger_is_known_from_another_ledger() -> None:
    first, second = session(None, 4), session(session(None, 4), 3)
    longer = session(session(None, 4), 6)
    ledgers = [ledger_of(state) for state in (first, second, longer)]
    assert is_earlier(ledgers[0], ledgers[1])
    assert is_earlier(ledgers[1], ledgers[2])
    assert is_earlier(Ledger(SEED, 50, CONTEXT, "zeros"), ledgers[0])
    assert not is_earlier(ledgers[1], ledgers[0])
    assert not is_earlier(ledgers[0], ledgers[0])
    assert not is_earlier(replace(ledgers[0], seed=9), ledgers[1])
    assert not is_earlier(ledger_of(session(None, 4, world=3)), ledgers[1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": 0}, "samples: "),
        ({"position": "far"}, "position: "),
        ({"entries": [7]}, "entries.0: "),
        ({"entries": [{"session": 1}]}, "entries.0.first_step: "),
        ({"entries": [ledger_tree(three_sessions())["entries"][0] | {"end_position": 17}]}, "are not positions 0–16"),
        ({"entries": [ledger_tree(three_sessions())["entries"][0] | {"ranks": []}]}, "0 ranks can't share 6"),
        ({"entries": [ledger_tree(three_sessions())["entries"][0] | {"strategy": "none"}]}, "strategy: "),
    ],
)
def test_a_damaged_ledger_is_told_with_the_place(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps(ledger_tree(three_sessions()) | change))
    with pytest.raises(InputError) as raised:
        read_ledger(path)
    assert str(raised.value).startswith(f"{path}: damaged, this is no ledger (")
    assert told in str(raised.value)
