"""Real runs keep a true ledger: over stops, crashes, changes of world size, and ranks that read what they shouldn't."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from shoal.core.errors import Interrupted
from shoal.core.recipe import Recipe
from shoal.data.audit import audit
from shoal.data.ledger import Ledger, ledger_from, read_ledger
from shoal.train.checkpoint import newest_state
from shoal.train.loop import train
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, run_training, tiny_recipe

SHAPE: dict[str, Any] = {"context": 64, "layers": 1}
"""About 420 samples, so that fifteen steps of 31 sequences are more than an epoch."""


def recipe_of(corpus: Path, **sections: Any) -> Recipe:
    return tiny_recipe(corpus, model=SHAPE, **{"train": {"global_batch": 31, "micro_batch": 5}, **sections})


def steps_of(world: Any, recipe: Recipe, folder: Path, stop_at: int, resume: bool) -> None:
    """Train until a step, and leave as Ctrl-C does."""
    parts = build_parts(recipe, folder, world, resume)
    progress = parts.progress
    try:
        train(dataclasses.replace(parts, stop_requested=lambda: progress.step + 1 >= stop_at))
    except Interrupted:
        pass
    finally:
        parts.telemetry.close()


def ledgers(folder: Path) -> Ledger:
    """The run's ledger, which its newest checkpoint must hold too."""
    newest = newest_state(folder / "checkpoints")
    assert newest is not None
    ledger = read_ledger(folder / "ledger.json")
    assert ledger_from(newest[1]["batches"]["ledger"], newest[0]) == ledger
    assert ledger.position == newest[1]["batches"]["position"]
    return ledger


def assert_whole(ledger: Ledger, samples: int) -> None:
    found = audit(ledger)
    assert (found.faults, found.lost, found.repeated, found.consumed) == ([], 0, 0, samples)


def test_a_straight_run_is_one_entry_however_often_it_was_saved(corpus: Path, tmp_path: Path) -> None:
    run_training(alone(), recipe_of(corpus, checkpoint={"every": 3}), tmp_path)
    ledger = ledgers(tmp_path)
    assert_whole(ledger, 620)
    assert 1 < ledger.position / ledger.samples < 2
    (entry,) = ledger.entries
    assert (entry.session, entry.first_step, entry.last_step, len(entry.ranks)) == (1, 1, 20, 1)


def test_two_ranks_then_one_then_four_lose_and_repeat_nothing(corpus: Path, tmp_path: Path) -> None:
    train = {"global_batch": 31, "micro_batch": 5, "steps": 15}
    recipe = recipe_of(corpus, train=train, checkpoint={"every": 4})
    run_ranks(2, steps_of, recipe, tmp_path, 6, False)
    assert_whole(ledgers(tmp_path), 6 * 31)
    steps_of(alone(), recipe, tmp_path, 11, True)
    run_ranks(4, steps_of, recipe_of(corpus, train=train, data={"partition": "blocks"}), tmp_path, 99, True)
    ledger = ledgers(tmp_path)
    assert_whole(ledger, 15 * 31)
    assert ledger.position > ledger.samples
    told = [(entry.session, len(entry.ranks), entry.strategy, entry.first_step, entry.last_step) for entry in ledger.entries]
    assert told == [(1, 2, "interleaved", 1, 6), (2, 1, "interleaved", 7, 11), (3, 4, "blocks", 12, 15)]


def test_steps_that_a_crash_threw_away_are_not_repeats(corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(corpus, checkpoint={"every": 5})
    parts = build_parts(recipe, tmp_path, alone())
    steps = itertools.count(1)

    def crash() -> bool:
        if next(steps) == 14:
            raise RuntimeError("the power is gone")
        return False

    with pytest.raises(RuntimeError, match="power"):
        train(dataclasses.replace(parts, stop_requested=crash))
    parts.checkpoints.wait()
    parts.telemetry.close()
    assert_whole(ledgers(tmp_path), 10 * 31)
    steps_of(alone(), recipe, tmp_path, 99, True)
    ledger = ledgers(tmp_path)
    assert_whole(ledger, 620)
    assert [(entry.session, entry.first_step, entry.last_step) for entry in ledger.entries] == [(1, 1, 10), (2, 11, 20)]


def astray(world: Any, recipe: Recipe, folder: Path) -> list[tuple[int, int, int]]:
    """Rank 1 reads at step 4 again what it read at step 1; returns its (position, wrong sample, right sample)."""
    parts = build_parts(recipe, folder, world)
    batches, read = parts.batches, parts.batches._read
    samples_read: list[Any] = []
    wrong: list[tuple[int, int, int]] = []

    def read_again(positions: Any, samples: Any) -> Any:
        samples_read.append(samples)
        if world.rank == 1 and len(samples_read) == 4:
            wrong.append((int(positions[2]), int(samples_read[0][2]), int(samples[2])))
            samples = samples.copy()
            samples[2] = samples_read[0][2]
        return read(positions, samples)

    batches._read = read_again  # type: ignore[method-assign]
    train(parts)
    parts.telemetry.close()
    return wrong


def test_a_rank_that_reads_a_wrong_sample_is_named(corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(corpus, train={"global_batch": 31, "steps": 6}, checkpoint={"every": 2})
    (position, again, lost) = run_ranks(2, astray, recipe, tmp_path)[1][0]
    found = audit(ledgers(tmp_path))
    assert (found.consumed, found.lost, found.repeated, found.unproven) == (6 * 31, 1, 1, 0)
    assert found.faults == [
        f"session 1, rank 1, step 4: read sample {again} instead of {lost} (position {position})",
        f"epoch 1: 1 sample ({lost}) lost",
        f"epoch 1: 1 sample ({again}) repeated",
    ]
