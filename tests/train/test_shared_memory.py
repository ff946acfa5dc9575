"""Ranks that own parameters in shared memory: all have all weights, whatever changed them, and a run goes on to the bit."""

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from shoal.core.run_directory import RunDirectory
from shoal.parallel.shared_memory import SharedMemory
from shoal.parallel.world import World
from shoal.train.averages import averaged_weights
from shoal.train.loop import Parts, train
from shoal.train.optimizers import update_work
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, tiny_recipe

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw", "lookahead": {"every": 2}},
    "muon": {"kind": "muon"},
    "muon, of which the first rank has nothing": {"kind": "muon"},
}
TUNING = {"layer_decay": 0.5}


def weights(parts: Parts) -> list[Tensor]:
    """All that this rank computes with."""
    return [parameter.detach().clone() for parameter in parts.model.parameters()]


def run(parts: Parts) -> list[Tensor]:
    try:
        train(parts)
    finally:
        parts.telemetry.close()
    return weights(parts)


def live(world: World, corpus: Path, name: str, folder: Path) -> dict[str, list[Tensor]]:
    torch.set_num_threads(1)
    recipe = tiny_recipe(
        corpus,
        optimizer=OPTIMIZERS[name],
        regular={"ema": 0.9},
        train={"steps": 8, "global_batch": 6},
        evaluation={"every": 3, "sequences": 16, "final_sequences": 16},
        checkpoint={"every": 4, "keep": 9},
    )
    # as where a vocabulary is large, and ranks are many
    mostly_embedding = lambda _: lambda of, shape: 10**9 if of.startswith("embedding") else shape.numel()  # noqa: E731
    with (
        mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0),
        mock.patch("shoal.train.strategies.update_work", mostly_embedding if "nothing" in name else update_work),
    ):
        parts = build_parts(recipe, folder / "run", world)
        assert isinstance(parts.sync, SharedMemory) and parts.sync.memory is not None
        assert "nothing" not in name or world.rank or [*parts.sync.shards] == ["embedding.weight"]
        found = {"trained": run(parts)}
        with averaged_weights(parts.sync, parts.optimizer):
            found["averaged"] = weights(parts)
        found["after"] = weights(parts)
        if world.is_main:
            shutil.copytree(folder / "run", folder / "again")
            for step in RunDirectory(folder / "again").checkpoints.glob("step-*8"):
                shutil.rmtree(step)
        parts.sync.wire.gather_objects(None)
        found["again"] = run(build_parts(recipe, folder / "again", world, resume=True))
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_ranks_have_all_weights_and_go_on_to_the_bit(corpus: Path, tmp_path: Path, name: str) -> None:
    first, *others = run_ranks(3, live, corpus, name, tmp_path)
    assert all(map(torch.equal, first["trained"], first["after"]))
    assert all(map(torch.equal, first["trained"], first["again"]))
    assert not any(map(torch.equal, first["trained"], first["averaged"]))
    for other in others:
        for kind, its in first.items():
            assert all(map(torch.equal, its, other[kind])), kind


def tuned(world: World, corpus: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    recipe = tiny_recipe(corpus, tuning=TUNING, train={"steps": 6, "global_batch": 6})
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        run(build_parts(recipe, folder, world))


def test_a_layers_rate_is_its_own_whoever_owns_it(corpus: Path, tmp_path: Path) -> None:
    run_ranks(2, tuned, corpus, tmp_path / "two")
    tuned(alone(), corpus, tmp_path / "one")
    two, one = ([line["loss"] for line in read_metrics(RunDirectory(tmp_path / name).metrics)[0]] for name in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-5)
