"""Small training runs, in this process or on ranks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import World
from shoal.train.loop import Parts, train
from shoal.train.setup import build
from shoal.train.telemetry import read_metrics


def tiny_recipe(corpus: Path, **sections: Any) -> Recipe:
    """A two-layer model that trains in a second; sections are merged into it."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "data": {"directory": str(corpus)},
        "model": {"preset": "qwen3-tiny", "context": 16, "layers": 2, "dim": 32, "heads": 2, "hidden": 64},
        "train": {"steps": 20, "global_batch": 8, "compile": "off", "device": "cpu"},
        "optimizer": {"learning_rate": 3e-3},
        "evaluation": {"sequences": 16, "final_sequences": 16},
    }
    for name, changes in sections.items():
        tree[name] = {**tree.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return build_recipe(tree)


def build_parts(recipe: Recipe, folder: Path, world: World, resume: bool = False) -> Parts:
    """The objects of a run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return build(recipe, RunDirectory(folder), world, resume=resume, quiet=True)[0]


def run_training(world: World, recipe: Recipe, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Train on this rank; (the main rank's records, this rank's weights)."""
    torch.set_num_threads(1)
    parts = build_parts(recipe, folder, world)
    try:
        train(parts)
    finally:
        parts.telemetry.close()
    records = read_metrics(RunDirectory(folder).metrics)[0] if world.is_main else []
    return records, {name: value.detach().clone() for name, value in parts.model.state_dict().items()}
