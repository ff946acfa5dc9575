"""A run goes on from its checkpoint on any other number of ranks, in any other division, as if nothing had happened."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.errors import Interrupted
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.audit import audit
from shoal.data.ledger import read_ledger
from shoal.parallel.world import World
from shoal.train.checkpoint import Checkpoints, Saved
from shoal.train.loop import train
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, run_training, tiny_recipe

JOURNEYS = {
    "zero3 on 2, alone, zero1 and tensor on 4": [(2, 7, "zero3", 1), (1, 13, "replicate", 1), (4, 20, "zero1", 2)],
    "tensor on 2, zero2 on 4, replicate on 2": [(2, 6, "replicate", 2), (4, 12, "zero2", 1), (2, 20, "replicate", 1)],
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lookahead": {"every": 5}},
    "muon": {"kind": "muon", "muon_row_decay": 0.9, "lookahead": {"every": 5}},
}


def sessions(world: World, corpus: Path, folder: Path, last: int, shard: str, tensor: int, resume: bool) -> None:
    """One with each optimizer, in a folder of its name."""
    torch.set_num_threads(1)
    for optimizer, settings in OPTIMIZERS.items():
        recipe = tiny_recipe(corpus, parallel={"shard": shard, "tensor": tensor}, optimizer=settings)
        session(world, recipe, folder / optimizer, last, resume)


def session(world: World, recipe: Recipe, folder: Path, last: int, resume: bool) -> None:
    parts = build_parts(recipe, folder, world, resume=resume)
    progress = parts.progress
    parts = dataclasses.replace(parts, stop_requested=lambda: last < 20 and progress.step + 1 >= last)
    try:
        train(parts)
    except Interrupted:
        pass
    finally:
        parts.telemetry.close()


FIRST, *OTHERS = JOURNEYS


@pytest.mark.parametrize("journey", [FIRST, *(pytest.param(name, marks=pytest.mark.thorough) for name in OTHERS)])
def test_a_run_goes_on_in_any_other_division(corpus: Path, tmp_path: Path, journey: str) -> None:
    for number, (ranks, *how) in enumerate(JOURNEYS[journey]):
        arguments: tuple[Any, ...] = (corpus, tmp_path, *how, number > 0)
        if ranks == 1:
            sessions(alone(), *arguments)
        else:
            run_ranks(ranks, sessions, *arguments)
    for optimizer, settings in OPTIMIZERS.items():
        straight = run_training(alone(), tiny_recipe(corpus, optimizer=settings), tmp_path / f"straight-{optimizer}")
        check_journey(RunDirectory(tmp_path / optimizer), *straight)


def check_journey(run: RunDirectory, reference: list[dict[str, Any]], weights: dict[str, torch.Tensor]) -> None:
    """That it was the training of `reference`, which was never divided nor stopped, with its weights at the end."""
    records = read_metrics(run.metrics)[0]
    assert [record["loss"] for record in records] == pytest.approx([record["loss"] for record in reference], rel=1e-5)
    found = Checkpoints(run.checkpoints).newest()
    assert found is not None
    saved = Saved.open(found[0])
    for name, value in weights.items():
        torch.testing.assert_close(saved.read("model", name), value, rtol=1e-3, atol=2e-5)
    assert not audit(read_ledger(run.ledger)).faults
