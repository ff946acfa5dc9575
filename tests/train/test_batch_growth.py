"""Runs whose global batch grows: the same training on any number of ranks, resumed or not."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.errors import Interrupted, RecipeError
from shoal.core.recipe import Recipe
from shoal.data.audit import audit
from shoal.data.ledger import read_ledger
from shoal.train.loop import train
from shoal.train.sizes import estimate
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, run_training, tiny_recipe

GROWTH = {"batch_start": 4, "batch_until": 0.6}


def recipe_of(corpus: Path, **sections: Any) -> Recipe:
    return tiny_recipe(corpus, **{"train": {"steps": 20, "global_batch": 12}, "schedule": GROWTH, **sections})


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


def test_ranks_that_grow_train_as_one_does(corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(corpus)
    alone_records, _ = run_training(alone(), recipe, tmp_path / "one")
    for world, sections in ((4, {}), (2, {"parallel": {"shard": "zero3"}})):
        records, _ = run_ranks(world, run_training, recipe_of(corpus, **sections), tmp_path / f"{world}{len(sections)}")[0]
        assert losses(records) == pytest.approx(losses(alone_records), rel=1e-5)
        assert [line["tokens"] for line in records] == [line["tokens"] for line in alone_records]
    read = [line["tokens"] // 16 for line in alone_records]
    assert read[:7] == [4, 8, 12, 16, 20, 24, 32]  # 4 a step, from a half of 60% of 20 steps on 8, then 12
    assert read[-1] == 6 * 4 + 6 * 8 + 8 * 12


def leave_at(world: Any, recipe: Recipe, folder: Path, step: int) -> None:
    parts = build_parts(recipe, folder, world)
    progress = parts.progress
    try:
        train(dataclasses.replace(parts, stop_requested=lambda: progress.step + 1 >= step))
    except Interrupted:
        pass
    finally:
        parts.telemetry.close()


def go_on(world: Any, recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    parts = build_parts(recipe, folder, world, resume=True)
    try:
        train(parts)
    finally:
        parts.telemetry.close()
    return {name: value.detach().clone() for name, value in parts.model.state_dict().items()}


def test_a_growing_run_goes_on_bitwise_and_at_another_world_size(corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(corpus)
    _, straight = run_training(alone(), recipe, tmp_path / "straight")
    leave_at(alone(), recipe, tmp_path / "ended", 6)  # where a stage ends
    leave_at(alone(), recipe, tmp_path / "stopped", 9)  # within one
    at_end = go_on(alone(), recipe, tmp_path / "ended")
    assert all(torch.equal(at_end[name], value) for name, value in straight.items())
    shutil.copytree(tmp_path / "stopped", tmp_path / "two")
    resumed = go_on(alone(), recipe, tmp_path / "stopped")
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    others = run_ranks(2, go_on, recipe, tmp_path / "two")[0]
    for name, value in straight.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-6)
    for folder in ("straight", "stopped", "two"):
        ledger = read_ledger(tmp_path / folder / "ledger.json")
        found = audit(ledger)
        assert (found.faults, found.consumed, ledger.position) == ([], 168, 168)


def test_exact_mode_gives_the_same_bits_while_the_batch_grows(corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        corpus,
        train={"steps": 8, "global_batch": 24},
        schedule={"batch_start": 8, "batch_until": 0.5},
        parallel={"exact": True, "virtual_shards": 4},
    )
    _, one = run_training(alone(), recipe, tmp_path / "one")
    _, two = run_ranks(2, run_training, recipe, tmp_path / "two")[0]
    assert all(torch.equal(one[name], value) for name, value in two.items())


def test_local_updates_grow_where_ranks_share_the_first_step_equally(corpus: Path, tmp_path: Path) -> None:
    recipe = recipe_of(corpus, parallel={"sync": "local", "local": {"every": 4}})
    records, _ = run_ranks(2, run_training, recipe, tmp_path)[0]
    assert records[-1]["tokens"] == 168 * 16
    assert audit(read_ledger(tmp_path / "ledger.json")).faults == []
    odd = recipe_of(corpus, schedule={"batch_start": 3}, parallel={"sync": "local", "local": {"every": 4}})
    with pytest.raises(RecipeError, match=r"'schedule\.batch_start' is 3, which 2 ranks can't share equally"):
        estimate(odd, 30, 2)


def test_an_estimate_counts_the_smaller_steps(corpus: Path) -> None:
    facts = estimate(recipe_of(corpus), 30, 1)
    assert (facts["steps"], facts["tokens"]) == (20, 168 * 16)
    by_tokens = estimate(recipe_of(corpus, train={"tokens": 168 * 16, "global_batch": 12}), 30, 1)
    assert by_tokens["tokens"] >= 168 * 16
    assert by_tokens["steps"] > 14


def test_virtual_shards_must_share_the_first_step(corpus: Path) -> None:
    recipe = recipe_of(corpus, train={"steps": 8, "global_batch": 24}, schedule={"batch_start": 6}, parallel={"exact": True})
    with pytest.raises(RecipeError, match=r"schedule\.batch_start is 6, which 8 virtual shards can't share equally"):
        estimate(recipe, 30, 1)
