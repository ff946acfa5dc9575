"""Runs whose ranks step apart: they go on from a checkpoint as if nothing had happened, and on other ranks as they can."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.core.errors import Interrupted
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import World
from shoal.train.checkpoint import Checkpoints
from shoal.train.loop import train
from shoal.train.telemetry import read_metrics
from tests.ranks import run_ranks
from tests.train.runs import build_parts, tiny_recipe

LOCAL = {"every": 4, "fragments": 2, "overlap": 2, "learning_rate": 0.5}
DIVISIONS = {
    "copies": {},
    "zero1 within": {"shard": "zero1", "shard_ranks": 2},
    "tensor within": {"tensor": 2, "codec": {"kind": "none"}},
}


def session(world: World, corpus: Path, folder: Path, resume: bool, keys: dict[str, Any]) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    recipe = tiny_recipe(
        corpus,
        parallel={"sync": "local", "local": LOCAL, "codec": {"kind": "bf16"}, **keys},
        checkpoint={"every": 7, "keep": 9},
    )
    parts = build_parts(recipe, folder, world, resume=resume)
    try:
        train(parts)
    finally:
        parts.telemetry.close()
    return {name: shard.value.detach().clone() for name, shard in parts.sync.shards.items()}


def go_back(folder: Path, step: int) -> None:
    """As if the run had been killed after its checkpoint of that step."""
    checkpoints = RunDirectory(folder).checkpoints
    for path in checkpoints.glob("step-*"):
        if path.name > f"step-{step:08}":
            shutil.rmtree(path)


@pytest.mark.parametrize(
    "kind", ["copies", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in DIVISIONS if kind != "copies")]
)
def test_it_goes_on_bitwise_from_the_middle_of_a_round(corpus: Path, tmp_path: Path, kind: str) -> None:
    ranks = 2 if kind == "copies" else 4
    straight = run_ranks(ranks, session, corpus, tmp_path, False, DIVISIONS[kind])
    go_back(tmp_path, 7)  # a fragment left after step 6, and is taken in after step 8
    resumed = run_ranks(ranks, session, corpus, tmp_path, True, DIVISIONS[kind])
    for mine, expected in zip(resumed, straight, strict=True):
        for name, value in expected.items():
            assert torch.equal(mine[name], value), name
    for name, value in straight[0].items():
        assert kind == "zero1 within" or torch.equal(value, straight[ranks // 2][name])


def stopped(world: World, corpus: Path, folder: Path) -> tuple[int, str]:
    """A run that only rank 1 is asked to end, and that is saved at every step."""
    torch.set_num_threads(1)
    recipe = tiny_recipe(corpus, parallel={"sync": "local", "local": LOCAL}, checkpoint={"every": 1})
    parts = build_parts(recipe, folder, world)
    parts = dataclasses.replace(parts, stop_requested=lambda: world.rank == 1 and parts.progress.step >= 4)
    told = ""
    try:
        train(parts)
    except Interrupted as error:
        told = str(error)
    finally:
        parts.telemetry.close()
    return parts.progress.step, told


def test_all_stop_at_the_same_step_whoever_was_asked_and_whatever_is_saved(corpus: Path, tmp_path: Path) -> None:
    (first, told), (second, also) = run_ranks(2, stopped, corpus, tmp_path)
    assert 4 < first == second < 20
    assert "interrupted; saved at step" in told and told == also


def test_another_number_of_ranks_goes_on_from_the_mean(corpus: Path, tmp_path: Path) -> None:
    run_ranks(2, session, corpus, tmp_path, False, {})
    go_back(tmp_path, 14)
    run_ranks(4, session, corpus, tmp_path, True, {})
    losses = [record["loss"] for record in read_metrics(RunDirectory(tmp_path).metrics)[0]]
    assert len(losses) == 20
    assert losses[14] < losses[0] - 0.3
    found = Checkpoints(RunDirectory(tmp_path).checkpoints).newest()
    assert found is not None and found[0].name == "step-00000020"


def test_ranks_that_read_different_amounts_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"global_batch"):
        run_ranks(3, session, corpus, tmp_path, False, {})
