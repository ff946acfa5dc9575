"""Regularised training is one training: over any ranks, in any division, interrupted or not.

Most runs are made in one set of rank processes; each test then looks at what one of them did.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from shoal.core.errors import Interrupted
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.shards import Corpus
from shoal.parallel.world import World
from shoal.train.averages import AverageEvaluator, averaged_weights, evaluated_weight
from shoal.train.checkpoint import Checkpoints, Saved
from shoal.train.layout import find_layout
from shoal.train.loop import Parts, train
from shoal.train.sizes import transformer_config
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, tiny_recipe
from tests.train.served import ServedRun

STEPS = 8
REGULAR = {"adversarial": 0.1, "l1": 1e-3, "l2": 0.5, "label_smoothing": 0.1, "z_loss": 1e-3, "ema": 0.9}
# what tensor ranks drop of attention is not what one rank would
DROPPED = {"dropout": 0.1, "attention_dropout": 0.0, "layer_drop": 0.4, "layers": 3}
WAYS: dict[str, dict[str, Any]] = {
    "replicate": {},
    "zero1": {"shard": "zero1"},
    "zero2": {"shard": "zero2"},
    "zero3": {"shard": "zero3"},
    "tensor": {"tensor": 2},
    "not decoupled": {"shard": "zero1"},
}


def recipe_of(corpus: Path, name: str, **sections: Any) -> Recipe:
    regular = REGULAR | ({"decoupled": False, "l1": 1e-5} if name == "not decoupled" else {})
    whole = {
        "regular": regular,
        "model": DROPPED,
        "train": {"steps": STEPS, "global_batch": 6, "micro_batch": 1},
        "evaluation": {"every": 3, "sequences": 16, "final_sequences": 16},
        "checkpoint": {"every": 4, "keep": 9},
        "parallel": {"bucket_megabytes": 0.01, **WAYS.get(name, {})},
    }
    return tiny_recipe(corpus, **{key: {**whole.get(key, {}), **sections.get(key, {})} for key in whole | sections})


@pytest.fixture(autouse=True, scope="module")
def unmeasured() -> Iterator[None]:
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        yield


def run(parts: Parts) -> None:
    try:
        train(parts)
    except Interrupted:
        pass
    finally:
        parts.telemetry.close()


def held(parts: Parts) -> list[Tensor]:
    """The weights and averages of this rank, as they are when nothing is put in their place."""
    averages = [value for key, value in parts.optimizer.state_dict().items() if key.endswith("/ema")]
    return [*(shard.value.detach().clone() for shard in parts.sync.shards.values()), *averages]


def go_back(folder: Path, step: int) -> None:
    """Forget what came after a step."""
    for path in RunDirectory(folder).checkpoints.glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


def live(world: World, corpus: Path, names: list[str], folder: Path) -> dict[str, bool]:
    """Run all ways to the end, and again from the middle; whether this rank ended with the same bits."""
    torch.set_num_threads(1)
    same = {}
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        for name in names:
            recipe, here = recipe_of(corpus, name), folder / name
            parts = build_parts(recipe, here, world)
            run(parts)
            before = held(parts)
            parts.sync.wire.gather_objects(None)
            if world.is_main:
                shutil.copytree(here, folder / f"{name}, again")
                go_back(folder / f"{name}, again", 4)
            parts.sync.wire.gather_objects(None)
            parts = build_parts(recipe, folder / f"{name}, again", world, resume=True)
            run(parts)
            same[name] = len(before) > 2 and all(map(torch.equal, before, held(parts)))
    return same


@pytest.fixture(scope="module")
def lives(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, bool]]]:
    folder = tmp_path_factory.mktemp("lives")
    return folder, run_ranks(2, live, corpus, [*WAYS], folder)


@pytest.fixture(scope="module")
def references(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank with all the data."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ("replicate", "not decoupled"):
        run(build_parts(recipe_of(corpus, name), folder / name, alone()))
    return folder


def written(folder: Path) -> dict[str, Tensor]:
    """The weights that a run would write."""
    found = Checkpoints(RunDirectory(folder).checkpoints).newest()
    assert found is not None
    saved = Saved.open(found[0])
    return {name: evaluated_weight(saved, name) for name in saved.wholes["model"]}


def assert_like(folder: Path, other: Path) -> None:
    """The same losses, evaluations, averages: to rounding."""
    ours, theirs = (read_metrics(RunDirectory(path).metrics) for path in (folder, other))
    for key, index in (("loss", 0), ("eval_loss", 1), ("eval_raw_loss", 1)):
        assert [line[key] for line in ours[index]] == pytest.approx([line[key] for line in theirs[index]], rel=1e-5), key
    for name, value in written(other).items():
        torch.testing.assert_close(written(folder)[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", WAYS)
def test_two_ranks_train_as_one_does(lives: Any, references: Path, name: str) -> None:
    assert_like(lives[0] / name, references / (name if name == "not decoupled" else "replicate"))


@pytest.mark.parametrize("name", WAYS)
def test_interrupted_and_resumed_is_never_stopped_to_the_bit(lives: Any, name: str) -> None:
    folder, same = lives
    assert all(of_rank[name] for of_rank in same)
    whole, again = (read_metrics(RunDirectory(folder / which).metrics) for which in (name, f"{name}, again"))
    assert [line["loss"] for line in whole[0]] == [line["loss"] for line in again[0]]
    assert [line["eval_loss"] for line in whole[1]] == [line["eval_loss"] for line in again[1]]


@pytest.mark.parametrize("name", ["zero1", "zero3", "tensor"])
def test_a_dry_run_foretells_what_is_held_and_sent(corpus: Path, lives: Any, name: str) -> None:
    recipe = recipe_of(corpus, name)
    vocabulary = Corpus.open(corpus).vocabulary
    layout = find_layout(recipe, transformer_config(recipe, vocabulary), 2)
    bare = find_layout(recipe_of(corpus, name, regular={"ema": 0.0}), transformer_config(recipe, vocabulary), 2)
    averages = layout.held.optimizer - bare.held.optimizer
    assert averages == pytest.approx(bare.held.optimizer / 2, rel=0.01)  # one tensor more than AdamW's two
    # tensor ranks send less where a block is left out
    assert max(line["wire_bytes"] for line in read_metrics(RunDirectory(lives[0] / name).metrics)[0]) == sum(
        layout.sent.values()
    )


def test_averages_go_on_at_another_world_size(corpus: Path, lives: Any, references: Path, tmp_path: Path) -> None:
    shutil.copytree(lives[0] / "zero3", tmp_path / "run")
    go_back(tmp_path / "run", 4)
    run(build_parts(recipe_of(corpus, "replicate"), tmp_path / "run", alone(), resume=True))
    assert_like(tmp_path / "run", references / "replicate")


def test_what_is_evaluated_is_the_average_and_training_goes_on_with_the_weights(corpus: Path, tmp_path: Path) -> None:
    parts = build_parts(recipe_of(corpus, "replicate"), tmp_path, alone())
    run(parts)
    before = held(parts)
    plain, averaged = parts.evaluate.evaluate, parts.evaluate(parts.model)  # type: ignore[attr-defined]
    assert averaged["eval_raw_loss"] == plain(parts.model)["eval_loss"] != averaged["eval_loss"]
    with averaged_weights(parts.sync, parts.optimizer):
        assert plain(parts.model)["eval_loss"] == averaged["eval_loss"]
    assert all(map(torch.equal, held(parts), before))
    timed = AverageEvaluator(lambda model, **how: {"eval_loss": 1.0, "eval_seconds": 2.0}, parts.optimizer, parts.sync)
    assert timed(parts.model)["eval_seconds"] == 4.0


def test_an_average_may_begin_in_mid_run(corpus: Path, tmp_path: Path) -> None:
    run(build_parts(recipe_of(corpus, "replicate", regular={"ema": 0.0}), tmp_path, alone()))
    go_back(tmp_path, 4)
    parts = build_parts(recipe_of(corpus, "replicate"), tmp_path, alone(), resume=True)
    run(parts)
    assert int(parts.optimizer.state_dict()["average/ema"]) == 4


def test_regular_keys_that_are_off_change_no_bit(corpus: Path, tmp_path: Path) -> None:
    bare = tiny_recipe(corpus, train={"steps": 4})
    off = tiny_recipe(corpus, train={"steps": 4}, regular={"decoupled": False}, model={"layer_drop": 0.0})
    for name, recipe in (("bare", bare), ("off", off)):
        run(build_parts(recipe, tmp_path / name, alone()))
    bare_losses, off_losses = (
        [line["loss"] for line in read_metrics(RunDirectory(tmp_path / name).metrics)[0]] for name in ("bare", "off")
    )
    assert bare_losses == off_losses


def dropping(world: World, recipes: dict[str, Recipe], folder: Path) -> None:
    torch.set_num_threads(1)
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        for name, recipe in recipes.items():
            run(build_parts(recipe, folder / name, world))


def test_dropout_is_the_same_where_micro_batches_hold_the_same_sequences(corpus: Path, tmp_path: Path) -> None:
    model = {"dropout": 0.3, "layer_drop": 0.3}

    def recipe(micro_batch: int, partition: str) -> Recipe:
        train_keys = {"steps": 4, "global_batch": 8, "micro_batch": micro_batch}
        return tiny_recipe(corpus, model=model, train=train_keys, data={"partition": partition})

    recipes = {"one": recipe(1, "interleaved"), "two in blocks": recipe(2, "blocks"), "two": recipe(2, "interleaved")}
    dropping(alone(), recipes, tmp_path / "1")
    run_ranks(4, dropping, recipes, tmp_path / "4")
    losses = {
        name: [[line["loss"] for line in read_metrics(RunDirectory(tmp_path / ranks / name).metrics)[0]] for ranks in "14"]
        for name in recipes
    }
    for name in ("one", "two in blocks"):
        assert losses[name][1] == pytest.approx(losses[name][0], rel=1e-5)
    assert losses["two"][1] != pytest.approx(losses["two"][0], rel=1e-4)  # other sequences drop together


def test_blocks_are_left_out_alike_whatever_the_micro_batch(corpus: Path, tmp_path: Path) -> None:
    model = {"layer_drop": 0.5, "layers": 4}
    for name, micro_batch in (("one", 1), ("several", 3)):
        run(build_parts(tiny_recipe(corpus, model=model, train={"micro_batch": micro_batch}), tmp_path / name, alone()))
    one, several = (
        [line["loss"] for line in read_metrics(RunDirectory(tmp_path / name).metrics)[0]] for name in ("one", "several")
    )
    assert one == pytest.approx(several, rel=1e-5)


def test_recomputed_blocks_drop_what_they_dropped(corpus: Path, tmp_path: Path) -> None:
    for name, how in (("kept", "none"), ("recomputed", "full")):
        recipe = recipe_of(corpus, "replicate", train={"recompute": how})
        run(build_parts(recipe, tmp_path / name, alone()))
    kept, recomputed = (
        [line["loss"] for line in read_metrics(RunDirectory(tmp_path / name).metrics)[0]] for name in ("kept", "recomputed")
    )
    assert kept == pytest.approx(recomputed, rel=1e-6)


def test_a_decoupled_pull_makes_weights_exactly_zero_and_leaves_norms_alone(corpus: Path, tmp_path: Path) -> None:
    strong = dataclasses.replace(recipe_of(corpus, "replicate"), regular=recipe_of(corpus, "", regular={"l1": 2.0}).regular)
    parts = build_parts(strong, tmp_path, alone())
    run(parts)
    matrices = [value for value in parts.model.parameters() if value.dim() == 2]
    assert sum(int((value == 0).sum()) for value in matrices) > 0.2 * sum(value.numel() for value in matrices)
    assert not any(bool((value == 0).any()) for value in parts.model.parameters() if value.dim() == 1)


def meeting(world: World, corpus: Path, folder: Path) -> tuple[float, float]:
    """Copies that step apart: the loss of their averages' mean, and of the mean of what they saved."""
    torch.set_num_threads(1)
    local = {"sync": "local", "local": {"every": 3}}
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        parts = build_parts(recipe_of(corpus, "", parallel=local), folder, world)
    run(parts)
    told = parts.evaluate(parts.model)["eval_loss"]
    parts.sync.wire.gather_objects(None)
    with torch.no_grad():
        for name, value in written(folder).items():
            parts.sync.shards[name].value.copy_(value)
    return told, parts.evaluate.evaluate(parts.model)["eval_loss"]  # type: ignore[attr-defined]


def test_copies_that_step_apart_are_evaluated_and_written_by_the_mean_of_their_averages(
    corpus: Path, tmp_path: Path
) -> None:
    for told, of_written in run_ranks(2, meeting, corpus, tmp_path):
        assert of_written == pytest.approx(told, rel=1e-6)


def evaluated_or_not(world: World, corpus: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    parallel = {"sync": "local", "local": {"every": 3}, "shard_ranks": 2}
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        for shard in ("zero2", "zero3"):
            for every in (0, 2):
                keys = {"regular": {"ema": 0.0}, "parallel": {**parallel, "shard": shard}, "evaluation": {"every": every}}
                recipe = recipe_of(corpus, "", train={"global_batch": 4, "steps": 6}, **keys)
                run(build_parts(recipe, folder / f"{shard}-{every}", world))


def test_an_evaluation_of_other_weights_changes_no_bit_of_training(corpus: Path, tmp_path: Path) -> None:
    run_ranks(4, evaluated_or_not, corpus, tmp_path)
    for shard in ("zero2", "zero3"):
        without, evaluated = (
            [line["loss"] for line in read_metrics(RunDirectory(tmp_path / f"{shard}-{every}").metrics)[0]]
            for every in (0, 2)
        )
        assert without == evaluated, shard


def test_servers_pull_and_average_as_one_rank_does(corpus: Path, tmp_path: Path) -> None:
    # no dropout: here workers are threads, which share a random state
    keys = {"sync": "server", "server": {"mode": "synchronous", "shards": 2, "lease": 60.0}}
    run(build_parts(recipe_of(corpus, "", model={"dropout": 0.0}), tmp_path / "alone", alone()))
    ServedRun(recipe_of(corpus, "", model={"dropout": 0.0}, parallel=keys), tmp_path / "served", 2).train()
    assert_like(tmp_path / "served", tmp_path / "alone")
