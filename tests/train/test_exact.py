"""Exact mode: the same bits on any number of ranks, also of a run that moves between them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.core.errors import InputError, Interrupted
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.batches import TrainingBatches
from shoal.data.order import Order
from shoal.data.rows import StreamRows
from shoal.data.shards import Corpus
from shoal.parallel.world import World
from shoal.train.exact import resolve
from shoal.train.loop import train
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, run_training, tiny_recipe

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-adamw": {"model": {"preset": "gpt2-small", "dropout": 0.1}},
    "gpt2-muon": {
        "model": {"preset": "gpt2-small", "dropout": 0.1},
        "optimizer": {"kind": "muon", "lookahead": {"every": 3}},
    },
    "qwen3-adamw": {
        "model": {"dropout": 0.2, "layer_drop": 0.3},
        "regular": {"l1": 1e-3, "l2": 0.1, "label_smoothing": 0.1, "z_loss": 1e-3, "ema": 0.9},
    },
    "qwen3-muon": {"model": {"dropout": 0.2}, "optimizer": {"kind": "muon", "muon_row_decay": 0.9}},
}
SAME = ("step", "tokens", "loss", "lr", "grad_norm")

Outcome = tuple[list[dict[str, Any]], dict[str, Tensor]]


def exact_recipe(corpus: Path, **sections: Any) -> Recipe:
    base = {"train": {"steps": 12, "global_batch": 16}, "parallel": {"exact": True}, "evaluation": {"every": 5}}
    return tiny_recipe(corpus, **{**sections, **{name: {**base[name], **sections.get(name, {})} for name in base}})


def logged(folder: Path) -> list[dict[str, Any]]:
    """What is said of the training itself, in steps and evaluations."""
    records, evaluations = read_metrics(RunDirectory(folder).metrics)
    told = [{key: value for key, value in line.items() if key != "eval_seconds"} for line in evaluations]
    return [{key: record[key] for key in SAME} for record in records] + told


def train_all(world: World, recipes: dict[str, Recipe], folder: Path) -> dict[str, Outcome]:
    """One set of processes for all shapes: starting them is what takes time."""
    results = {}
    for name, recipe in recipes.items():
        _, weights = run_training(world, recipe, folder / name)
        results[name] = (logged(folder / name) if world.is_main else [], weights)
    return results


def assert_same(got: Outcome, reference: Outcome, what: str) -> None:
    if got[0]:
        assert got[0] == reference[0], what
    for name, value in got[1].items():
        assert torch.equal(value, reference[1][name]), f"{what}: {name} differs"


def test_weights_losses_and_norms_have_the_same_bits_on_one_two_and_four_ranks(corpus: Path, tmp_path: Path) -> None:
    recipes = {name: exact_recipe(corpus, **sections) for name, sections in SHAPES.items()}
    reference = train_all(alone(), recipes, tmp_path / "1")
    for size in (2, 4):
        for rank, results in enumerate(run_ranks(size, train_all, recipes, tmp_path / str(size))):
            for name, got in results.items():
                assert bool(got[0]) == (rank == 0)
                assert_same(got, reference[name], f"{name} on rank {rank} of {size}")


def go_on(world: World, recipe: Recipe, folder: Path, stop_at: int) -> Outcome:
    """Train until `stop_at`, from the checkpoint that is there."""
    parts = build_parts(recipe, folder, world, resume=(folder / "checkpoints").exists())
    progress = parts.progress
    parts = dataclasses.replace(parts, stop_requested=lambda: progress.step + 1 >= stop_at)
    try:
        train(parts)
    except Interrupted:
        assert progress.step == stop_at
    finally:
        parts.telemetry.close()
    weights = {name: value.detach().clone() for name, value in parts.model.state_dict().items()}
    return (logged(folder) if world.is_main else [], weights)


@pytest.mark.thorough
def test_stopped_on_two_resumed_on_one_and_on_four_is_bitwise_like_never_stopped(corpus: Path, tmp_path: Path) -> None:
    recipe = exact_recipe(corpus, **SHAPES["gpt2-muon"])
    _, weights = run_training(alone(), recipe, tmp_path / "straight")
    reference = (logged(tmp_path / "straight"), weights)
    moved = tmp_path / "moved"
    run_ranks(2, go_on, recipe, moved, 4)
    go_on(alone(), recipe, moved, 8)
    for got in run_ranks(4, go_on, recipe, moved, 1000):
        assert_same(got, reference, "moved 2, 1, 4")


def test_exact_mode_trains_as_the_ordinary_one_does(corpus: Path, tmp_path: Path) -> None:
    exact, _ = run_training(alone(), exact_recipe(corpus), tmp_path / "exact")
    ordinary, _ = run_training(alone(), exact_recipe(corpus, parallel={"exact": False}), tmp_path / "ordinary")
    assert [r["loss"] for r in exact] == pytest.approx([r["loss"] for r in ordinary], rel=1e-5)


def test_one_thread_unless_the_recipe_says_more(corpus: Path, tmp_path: Path) -> None:
    for given, expected in ((0, 1), (2, 2)):
        torch.set_num_threads(3)
        parts = build_parts(exact_recipe(corpus, parallel={"threads": given}), tmp_path / str(given), World())
        parts.telemetry.close()
        assert torch.get_num_threads() == expected
    torch.set_num_threads(1)


def test_a_virtual_shard_reads_the_same_sequences_on_any_number_of_ranks(corpus: Path) -> None:
    recipe = resolve(exact_recipe(corpus), 1)
    rows = StreamRows(Corpus.open(corpus).split("train"), 16)
    order = Order(1, rows.samples)

    def steps(world: int) -> list[tuple[int, list[list[int]]]]:
        train = recipe.train
        ranks = [
            TrainingBatches(rows, order, train.global_batch, train.micro_batch, rank, world, recipe.data.partition)
            for rank in range(world)
        ]
        return [(at, rows.tokens.tolist()) for _ in range(3) for rank in ranks for at, rows in rank.next_step()]

    assert [position for position, _ in steps(1)] == list(range(0, 3 * 16, 2))
    assert steps(1) == steps(2) == steps(8)


@pytest.mark.parametrize(
    ("sections", "world", "told"),
    [
        ({"train": {"global_batch": 12}}, 1, "train.global_batch is 12.*8 virtual shards.*multiple of 8"),
        ({"parallel": {"virtual_shards": 6}}, 1, "parallel.virtual_shards is 6; .*power of two"),
        ({"train": {"micro_batch": 4}}, 1, r"train.micro_batch is 4.*give 2 \(global_batch / virtual_shards\), or 0"),
        ({"train": {"minutes": 2}}, 1, "train.minutes.*clock.*train.steps or train.tokens"),
        ({}, 3, "3 ranks.*power of two up to parallel.virtual_shards, which is 8"),
        ({}, 16, "16 ranks.*power of two up to parallel.virtual_shards, which is 8"),
    ],
)
def test_what_can_not_be_exact_is_refused(corpus: Path, sections: dict[str, Any], world: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        resolve(exact_recipe(corpus, **sections), world)


def test_a_recipe_that_is_not_exact_is_left_alone(corpus: Path) -> None:
    recipe = exact_recipe(corpus, parallel={"exact": False}, train={"global_batch": 7})
    assert resolve(recipe, 3) is recipe
