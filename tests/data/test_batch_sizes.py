"""Steps that grow: by whole stages, alike on any ranks, and each proved by the ledger."""

import json
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_ledger import CONTEXT, batches_of

from shoal.core.errors import CorpusError, RecipeError
from shoal.core.recipe_file import build_recipe
from shoal.data.audit import audit
from shoal.data.batch_sizes import BatchSizes, Stage, sequences_at_once
from shoal.data.ledger import Ledger, ledger_from


def recipe_of(batch: int, start: int, until: float, **train: int) -> Any:
    return build_recipe(
        {"train": {"global_batch": batch, **train}, "schedule": {"batch_start": start, "batch_until": until}}
    )


@given(
    start=st.integers(1, 5), multiple=st.integers(2, 7), until=st.integers(0, 100), steps=st.integers(0, 60),
    tokens=st.integers(0, 4000),
)  # fmt: skip
def test_a_step_is_as_large_as_the_share_of_the_run_says(
    start: int, multiple: int, until: int, steps: int, tokens: int
) -> None:
    """Against the plainest reading: step by step, in exact fractions."""
    if not steps and not tokens:
        tokens = 100
    sizes = BatchSizes.of(recipe_of(start * multiple, start, until / 100, steps=steps, tokens=tokens), CONTEXT)
    position = 0
    for step in range(80):
        shares = [Fraction(step, steps)] if steps else []
        shares += [Fraction(position * CONTEXT, tokens)] if tokens else []
        grown = max(shares) / Fraction(until, 100) if until else Fraction(1)
        batch = start * (1 + floor((multiple - 1) * min(grown, Fraction(1))))
        assert sizes.at(position) == batch
        assert sizes.position_after(step) == position
        assert sizes.steps_for(position) == step
        assert sizes.steps_for(position - 0.5) == max(0, step)
        position += batch


def test_the_stages_of_a_run_in_tokens() -> None:
    """12 sequences of 4 tokens are a quarter of 192 tokens: 2, 4 and 6 a step until then."""
    sizes = BatchSizes.of(recipe_of(8, 2, 0.25, tokens=192), CONTEXT)
    assert sizes.stages == (Stage(0, 0, 2), Stage(2, 4, 4), Stage(3, 8, 6), Stage(4, 14, 8))
    assert (sizes.smallest, sizes.largest) == (2, 8)
    assert sizes.steps_for(192 / CONTEXT) == 4 + 5


def test_without_a_start_all_steps_are_alike() -> None:
    for start in (0, 8):
        assert BatchSizes.of(recipe_of(8, start, 0.25, steps=9), CONTEXT) == BatchSizes.constant(8)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"train": {"global_batch": 10, "steps": 5}}, "is 4, of which 'train.global_batch' (10) is no multiple"),
        ({"train": {"global_batch": 8, "minutes": 5.0}}, "not by the clock, which never repeats: set 'train.steps'"),
    ],
)
def test_what_can_not_grow_is_told(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as raised:
        BatchSizes.of(build_recipe(keys | {"schedule": {"batch_start": 4}}), CONTEXT)
    assert told in str(raised.value)


def test_what_is_computed_at_once_is_the_first_step_s_share_or_the_micro_batch() -> None:
    grown = recipe_of(32, 8, 0.25, steps=9)
    assert [sequences_at_once(grown, ranks) for ranks in (1, 2, 3, 8)] == [8, 4, 3, 1]
    assert sequences_at_once(recipe_of(32, 8, 0.25, steps=9, micro_batch=16), 1) == 16
    assert sequences_at_once(recipe_of(32, 0, 0.25, steps=9), 3) == 11


def read(
    state: dict[str, Any] | None, sizes: BatchSizes, steps: int, world: int, strategy: Any, every: int
) -> tuple[dict[str, Any], list[list[int]]]:
    """Read some steps on so many ranks; (the state at the end, positions of each step)."""
    ranks = [batches_of(50, sizes.largest, 2, rank, world, strategy, sizes) for rank in range(world)]
    for batches in ranks if state is not None else ():
        batches.load_state_dict(json.loads(json.dumps(state)))
    begun = sizes.steps_for(ranks[0].position)
    positions: list[list[int]] = []
    for step in range(begun + 1, begun + steps + 1):
        lengths = {len(batches.next_step()) for batches in ranks}
        assert len(lengths) == 1, "ranks have different numbers of micro-batches"
        positions.append(sorted(int(p) for batches in ranks for held, _ in batches.recorder.held[-99:] for p in held))
        for batches in ranks:
            batches.recorder.add_up()
        if step % every == 0 or step == begun + steps:
            # each stretch of the same size is gathered by itself
            shares = [[*(share for _, _, share in batches.recorder.stretches), batches.recorder.share] for batches in ranks]
            for batches in ranks:
                gathered = iter(list(zip(*shares, strict=True)))
                batches.recorder.close(step, lambda _, gathered=gathered: list(next(gathered)))
    states = [batches.state_dict() for batches in ranks]
    assert all(other == states[0] for other in states)
    return states[0], positions


def ledger_of(state: dict[str, Any]) -> Ledger:
    return ledger_from(state["ledger"], "the state")


@settings(max_examples=25, deadline=None)
@given(data=st.data(), strategy=st.sampled_from(["interleaved", "blocks"]))
def test_a_growing_run_over_any_sessions_and_world_sizes_reads_the_same_and_is_proved_whole(
    data: st.DataObject, strategy: str
) -> None:
    start = data.draw(st.integers(4, 6))
    sizes = BatchSizes.of(recipe_of(4 * start, start, 0.5, steps=30), CONTEXT)
    state, steps, seen = None, 0, []
    for _ in range(data.draw(st.integers(1, 4))):
        count, world, every = (data.draw(st.integers(1, most)) for most in (12, 4, 5))
        state, positions = read(state, sizes, count, world, strategy, every)
        steps, seen = steps + count, [*seen, *positions]
    edges = [sizes.position_after(step) for step in range(steps + 1)]
    assert seen == [list(range(low, high)) for low, high in pairwise(edges)]
    assert state is not None
    ledger = ledger_of(state)
    found = audit(ledger)
    assert (found.faults, found.lost, found.repeated, found.consumed) == ([], 0, 0, edges[-1])
    assert {entry.global_batch for entry in ledger.entries} == {sizes.at(edge) for edge in edges[:-1]}


def test_a_stage_is_an_entry_of_the_ledger_however_often_it_was_saved() -> None:
    sizes = BatchSizes.of(recipe_of(8, 2, 0.25, tokens=192), CONTEXT)
    whole, _ = read(None, sizes, 9, 2, "interleaved", every=9)
    often, _ = read(None, sizes, 9, 2, "interleaved", every=1)
    assert whole == often
    told = [(entry.first_step, entry.last_step, entry.global_batch) for entry in ledger_of(whole).entries]
    assert told == [(1, 2, 2), (3, 3, 4), (4, 4, 6), (5, 9, 8)]


def test_a_wrong_sample_in_a_stage_is_named_with_its_step() -> None:
    sizes = BatchSizes.of(recipe_of(8, 2, 0.25, tokens=192), CONTEXT)
    batches = batches_of(50, 8, 0, sizes=sizes)
    inner = batches._read

    def astray(positions: Any, samples: Any) -> Any:
        return inner(positions, np.where(positions == 9, samples[0], samples))

    batches._read = astray  # type: ignore[method-assign]
    for _ in range(6):
        batches.next_step()
    batches.recorder.close(6, lambda share: [share])
    faults = audit(batches.recorder.ledger).faults
    assert faults[0].startswith("session 1, rank 0, step 4: read sample ")
    assert "(position 9)" in faults[0]


def test_a_first_step_too_small_for_the_ranks_is_told() -> None:
    sizes = BatchSizes.of(recipe_of(8, 2, 0.25, steps=9), CONTEXT)
    with pytest.raises(CorpusError, match=r"schedule\.batch_start is 2, less than one sequence for each of 3 ranks"):
        batches_of(50, 8, 0, 0, 3, sizes=sizes)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_virtual_shards_are_as_many_in_each_stage(world: int) -> None:
    sizes = BatchSizes.of(recipe_of(32, 8, 0.5, steps=8), CONTEXT)
    batches = batches_of(50, 32, 8, 0, world, "blocks", sizes, virtual_shards=4)
    for step in range(8):
        rows = [len(sequences) for _, sequences in batches.next_step()]
        assert rows == [sizes.at(sizes.position_after(step)) // 4] * (4 // world)
