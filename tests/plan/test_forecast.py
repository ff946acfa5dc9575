"""From measured pieces to a whole run: against the plainest count, step by step."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.recipe_file import build_recipe
from shoal.data.batch_sizes import BatchSizes
from shoal.plan.forecast import COPY, MAPPED, Shape, foretell, numbers
from shoal.plan.network import Meeting
from shoal.plan.rehearsal import Extent, Rehearsal, evaluation_batches, passes, shorten

REHEARSAL = Rehearsal(
    start=7.0, first=3.0, passes=1, step=2.0, waiting=0.25, more=1.5, between=0.01, evaluation=0.5, batch=0.75, end=4.0,
    memory=900_000_000, checkpoint=200_000_000, model=60_000_000, wire_bytes=1000, sequences=100, peak_flops=1e11,
    threads=1, device="cpu",
)  # fmt: skip
ALONE = Meeting("every", "none", 0.0, 0.0)


def shape_of(recipe: Any, steps: int | None, data_ranks: int = 2, at_once: int = 2) -> Shape:
    sizes = BatchSizes.of(recipe, 16)
    return Shape(sizes, steps, 16, data_ranks, at_once, held_out=(45,), text_bytes=10**9, flops=1e6, parameters=10**6)


@settings(max_examples=60)
@given(
    steps=st.integers(1, 40), multiple=st.integers(1, 4), until=st.floats(0, 1), every=st.integers(0, 9),
    saves=st.integers(0, 9), sequences=st.integers(0, 60),
)  # fmt: skip
def test_a_run_takes_what_its_steps_evaluations_and_saves_take(
    steps: int, multiple: int, until: float, every: int, saves: int, sequences: int
) -> None:
    recipe = build_recipe(
        {
            "train": {"steps": steps, "global_batch": 4 * multiple},
            "schedule": {"batch_start": 4 if multiple > 1 else 0, "batch_until": until},
            "evaluation": {"every": every, "sequences": sequences},
            "checkpoint": {"every": saves},
        }
    )
    shape = shape_of(recipe, steps)
    meeting = replace(ALONE, seconds=0.25)
    total, position = REHEARSAL.start + REHEARSAL.first + REHEARSAL.end, 0
    for step in range(1, steps + 1):
        batch = shape.sizes.at(position)
        position += batch
        total += REHEARSAL.step + (batch // 4 - 1) * REHEARSAL.more + REHEARSAL.between
        if every and step % every == 0 and step < steps:
            read = min(sequences or 45, 45)
            total += REHEARSAL.evaluation + REHEARSAL.batch * -(-read // 4)
        if saves and step % saves == 0 and step < steps:
            total += REHEARSAL.checkpoint / COPY
    total += REHEARSAL.evaluation + REHEARSAL.batch * 12
    found = foretell(recipe, shape, REHEARSAL, meeting)
    assert found.total == pytest.approx(total)
    assert found.tokens == 16 * position
    assert found.steps == steps


def test_minutes_end_the_training_by_the_clock() -> None:
    recipe = build_recipe({"train": {"minutes": 1.0, "global_batch": 4}, "evaluation": {"every": 5, "sequences": 4}})
    found = foretell(recipe, shape_of(recipe, None), REHEARSAL, replace(ALONE, seconds=0.25))
    often = 2.0 + 0.01 + 1.25 / 5
    assert found.steps == 1 + int((60 - 3.0) / often)
    assert found.total == pytest.approx(7 + 60 + 0.5 + 12 * 0.75 + 4)


def test_whichever_of_steps_and_minutes_ends_first() -> None:
    keys = {"minutes": 1.0, "steps": 10, "global_batch": 4}
    recipe = build_recipe({"train": keys})
    assert foretell(recipe, shape_of(recipe, 10), REHEARSAL, ALONE).training == pytest.approx(3 + 10 * (1.75 + 0.01))
    long = build_recipe({"train": keys | {"steps": 1000}})
    assert foretell(long, shape_of(long, 1000), REHEARSAL, ALONE).training == pytest.approx(60)


def test_memory_grows_by_what_reading_maps_and_disk_by_what_is_kept() -> None:
    recipe = build_recipe({"train": {"steps": 100, "global_batch": 4}, "checkpoint": {"every": 10, "keep": 3}})
    found = foretell(recipe, shape_of(recipe, 100), REHEARSAL, ALONE)
    assert found.memory == REHEARSAL.memory + 300 * MAPPED
    assert (found.disk, found.disk_peak) == (660_000_000, 860_000_000)
    once = build_recipe({"train": {"steps": 100, "global_batch": 4}})
    assert foretell(once, shape_of(once, 100), REHEARSAL, ALONE).disk_peak == 260_000_000


def test_numbers_are_plain_and_add_up() -> None:
    recipe = build_recipe({"train": {"steps": 5, "global_batch": 4}})
    told = numbers(foretell(recipe, shape_of(recipe, 5), REHEARSAL, ALONE))
    parts = ("start_seconds", "training_seconds", "evaluation_seconds", "end_seconds")
    assert told["total_seconds"] == pytest.approx(sum(told[part] for part in parts))
    assert told["mfu"] == pytest.approx(told["tokens_per_second"] * 1e6 / 1e11)


def test_passes_are_those_of_the_fullest_rank() -> None:
    assert [passes(batch, 2, 3) for batch in (1, 6, 7, 12, 13)] == [1, 1, 2, 2, 3]


def test_evaluations_read_a_share_of_every_corpus() -> None:
    assert [evaluation_batches((45,), limit, 4) for limit in (0, 1, 4, 5, 99)] == [12, 1, 1, 2, 12]
    assert [evaluation_batches((45, 10), limit, 4) for limit in (0, 8, 9, 40)] == [15, 2, 4, 8]
    recipe = build_recipe({"train": {"steps": 5, "global_batch": 4}})
    alone, two = (
        foretell(recipe, replace(shape_of(recipe, 5), held_out=held_out), REHEARSAL, ALONE) for held_out in ((45,), (45, 10))
    )
    assert two.evaluations - alone.evaluations == pytest.approx(3 * REHEARSAL.batch)


def test_tokens_are_real_ones_as_the_run_counts_them() -> None:
    recipe = build_recipe({"train": {"steps": 5, "global_batch": 4}})
    found = foretell(recipe, replace(shape_of(recipe, 5), tokens_per_row=6.4), REHEARSAL, ALONE)
    assert found.tokens == 128
    assert found.tokens_per_second * found.step == pytest.approx(4 * 6.4)


def test_a_rehearsal_reads_the_runs_own_text_to_its_end() -> None:
    recipe = build_recipe(
        {
            "name": "notes",
            "train": {"steps": 5000, "global_batch": 4},
            "evaluation": {"every": 50, "patience": 1},
            "data": {"weights": [[0, 1, 1], [0.001, 1, 3]]},
        }
    )
    short = shorten(recipe, 8, Extent(1, 2, 2, (45, 10), 1.0))
    assert short.corpus_directories == recipe.corpus_directories == ["data/notes"]
    assert short.evaluation.patience == 0
    assert short.data.weights == [[0, 1, 1]]
    assert (short.evaluation.sequences, short.evaluation.final_sequences) == (4, 12)
