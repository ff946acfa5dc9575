"""What every way of meeting must keep, from plain sums to one bit a value: a new one is a row of the table.

All rows are run in one set of rank processes; each test then looks at what one of them did.
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from shoal.core.errors import RecipeError, ShoalError
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.shards import Corpus
from shoal.parallel.world import World
from shoal.tasks import Task
from shoal.train.layout import find_layout
from shoal.train.loop import Parts, train
from shoal.train.sizes import estimate, transformer_config
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, tiny_recipe

STEPS = 6
SAVED = 3


@dataclass(frozen=True)
class Way:
    """Keys of `parallel`, and how near (relative) its losses are to those of one rank with all the data."""

    keys: dict[str, Any] = field(default_factory=dict)
    near: float = 1e-5
    optimizer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    steps_apart: bool = False


def _coded(kind: str, near: float, shard: str = "replicate", **settings: Any) -> Way:
    return Way({"shard": shard, "codec": {"kind": kind, **settings}}, near)


FEW_ROWS = {"context": 4}
"""A step has fewer tokens than the vocabulary has, so gradients of the embedding's rows travel by themselves."""

WAYS = {
    "plain": Way({"sync": "every"}),
    "in shared memory": Way({"sync": "auto"}),
    "zero1": Way({"shard": "zero1"}),
    "zero2": Way({"shard": "zero2"}),
    "zero3": Way({"shard": "zero3"}),
    "bf16": _coded("bf16", 1e-3),
    "fp16": _coded("fp16", 1e-3),
    "int8": _coded("int8", 3e-3),
    "int4": _coded("int4", 3e-2),
    "int4, forgetting": _coded("int4", 3e-2, feedback=False),
    "two_bit": _coded("two_bit", 0.1),
    "topk": _coded("topk", 0.1, keep=1 / 8),
    "sign": _coded("sign", 0.1),
    "powersgd": _coded("powersgd", 0.1, rank=2),
    "1-bit adam": dataclasses.replace(_coded("sign", 0.1), optimizer={"kind": "onebit_adam", "onebit_warmup": 2}),
    "int8, few rows": dataclasses.replace(_coded("int8", 3e-3), model=FEW_ROWS),
    "int4, few rows": dataclasses.replace(_coded("int4", 3e-2), model=FEW_ROWS),
    "zero1, int8": _coded("int8", 3e-3, "zero1"),
    "zero2, int4": _coded("int4", 3e-2, "zero2"),
    "zero3, int8": _coded("int8", 3e-3, "zero3"),
}
WAYS_OF_FOUR = {
    "zero1 over 2, int8": Way({"shard": "zero1", "shard_ranks": 2, "codec": {"kind": "int8"}}, 3e-3),
    "zero3 over 2, int4": Way({"shard": "zero3", "shard_ranks": 2, "codec": {"kind": "int4"}}, 3e-2),
    "int4, few rows, forgetting": dataclasses.replace(_coded("int4", 3e-2, feedback=False), model=FEW_ROWS),
    "tensor 2, int8": Way({"tensor": 2, "codec": {"kind": "int8"}}, 3e-3),
    "zero1 and tensor 2, int4": Way({"shard": "zero1", "tensor": 2, "codec": {"kind": "int4"}}, 3e-2),
}


def recipe_of(corpus: Path, way: Way, **train_keys: Any) -> Recipe:
    return tiny_recipe(
        corpus,
        parallel={"bucket_megabytes": 0.01, **way.keys},
        optimizer=way.optimizer,
        model=way.model,
        train={"steps": STEPS, "max_skipped": 1, **train_keys},
        checkpoint={"every": SAVED, "keep": 9},
        evaluation={"sequences": 1, "final_sequences": 1},
    )


def run(parts: Parts) -> None:
    try:
        train(parts)
    finally:
        parts.telemetry.close()


def losses_in(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(RunDirectory(folder).metrics)[0]]


class Spoilt:
    """A task whose loss is not a number in some steps."""

    def __init__(self, parts: Parts, steps: list[int]) -> None:
        self.task: Task = parts.task
        self.progress, self.steps = parts.progress, steps

    def batch(self, *arguments: Any) -> Any:
        return self.task.batch(*arguments)

    def loss(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, count = self.task.loss(*arguments)
        return loss * (torch.nan if self.progress.step + 1 in self.steps else 1.0), count


def spoilt(world: World, corpus: Path, way: Way, folder: Path) -> dict[str, Any]:
    """A run that gets a bad step on rank 1, and later another one."""
    parts = build_parts(recipe_of(corpus, way), folder, world)
    if world.rank == 1:
        parts = dataclasses.replace(parts, task=Spoilt(parts, [2, 5]))
    message = ""
    try:
        run(parts)
    except ShoalError as error:
        message = str(error)
    kept = parts.sync.own_state().values()
    return {"message": message, "finite": all(bool(value.isfinite().all()) for value in kept)}


def live(world: World, corpus: Path, ways: dict[str, Way], folder: Path) -> dict[str, dict[str, Any]]:
    """Run all ways; what this rank saw of each."""
    torch.set_num_threads(1)
    seen = {}
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        for name, way in ways.items():
            recipe, here = recipe_of(corpus, way), folder / name
            parts = build_parts(recipe, here / "straight", world)
            run(parts)
            weights = [shard.value.detach().clone() for shard in parts.sync.shards.values()]
            world_meets(parts)
            if world.is_main:
                shutil.copytree(here / "straight", here / "resumed")
                shutil.rmtree(RunDirectory(here / "resumed").checkpoints / f"step-{STEPS:08}")
            world_meets(parts)
            parts = build_parts(recipe, here / "resumed", world, resume=True)
            run(parts)
            again = [shard.value.detach().clone() for shard in parts.sync.shards.values()]
            run(build_parts(recipe_of(corpus, way, micro_batch=2), here / "accumulating", world))
            seen[name] = {
                "same": all(map(torch.equal, weights, again)),
                "spoilt": spoilt(world, corpus, way, here / "spoilt"),
            }
    return seen


def world_meets(parts: Parts) -> None:
    parts.sync.wire.gather_objects(None)


@pytest.fixture(scope="module")
def lives(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Where the runs are, and what each rank saw of each way."""
    folder = tmp_path_factory.mktemp("lives")
    seen = {}
    for ranks, ways in ((2, WAYS), (4, WAYS_OF_FOUR)):
        by_rank = run_ranks(ranks, live, corpus, ways, folder)
        seen |= {name: [of_rank[name] for of_rank in by_rank] for name in ways}
    return folder, seen


References = Callable[[str], tuple[list[float], list[Tensor]]]


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> References:
    """One rank with all the data, plainly, with the model of a way: its losses and weights."""
    known: dict[str, tuple[list[float], list[Tensor]]] = {}

    def of(name: str) -> tuple[list[float], list[Tensor]]:
        model = ALL[name].model
        if str(model) not in known:
            known[str(model)] = live_alone(corpus, Way(model=model), tmp_path_factory.mktemp("alone"))
        return known[str(model)]

    return of


def live_alone(corpus: Path, way: Way, folder: Path) -> tuple[list[float], list[Tensor]]:
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0):
        parts = build_parts(recipe_of(corpus, way), folder, alone())
    run(parts)
    return losses_in(folder), [value.detach() for value in parts.model.parameters()]


ALL = {**WAYS, **WAYS_OF_FOUR}
MEETING = [name for name, way in ALL.items() if not way.steps_apart]


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if "codec" in way.keys and not way.optimizer])
def test_one_rank_trains_as_without_any_to_the_bit(corpus: Path, tmp_path: Path, reference: References, name: str) -> None:
    losses, weights = live_alone(corpus, WAYS[name], tmp_path)
    assert losses == reference(name)[0]
    assert all(map(torch.equal, weights, reference(name)[1]))


@pytest.mark.parametrize("name", ALL)
def test_several_ranks_train_as_one_does(lives: Any, reference: References, name: str) -> None:
    assert losses_in(lives[0] / name / "straight") == pytest.approx(reference(name)[0], rel=ALL[name].near)


@pytest.mark.parametrize("name", ALL)
def test_accumulating_gradients_is_the_same_step(lives: Any, name: str) -> None:
    straight, accumulating = (losses_in(lives[0] / name / which) for which in ("straight", "accumulating"))
    assert accumulating == pytest.approx(straight, rel=ALL[name].near)


@pytest.mark.parametrize("name", ALL)
def test_interrupted_and_resumed_is_never_stopped_to_the_bit(lives: Any, name: str) -> None:
    folder, seen = lives
    assert all(of_rank["same"] for of_rank in seen[name])
    assert losses_in(folder / name / "resumed") == losses_in(folder / name / "straight")


@pytest.mark.parametrize("name", [name for name in MEETING if name != "in shared memory"])
def test_the_bytes_of_a_step_are_foretold(corpus: Path, lives: Any, name: str) -> None:
    folder, seen = lives
    recipe = recipe_of(corpus, ALL[name])
    layout = find_layout(recipe, transformer_config(recipe, Corpus.open(corpus).vocabulary), len(seen[name]))
    records = read_metrics(RunDirectory(folder / name / "straight").metrics)[0]
    warmup = ALL[name].optimizer.get("onebit_warmup", 0)
    sent, foretold = [record["wire_bytes"] for record in records[warmup:]], sum(layout.sent.values())
    if ALL[name].model == FEW_ROWS:  # foretold are as many as there are tokens
        assert all(0.8 * foretold < of_step <= foretold for of_step in sent)
    else:
        assert set(sent) == {foretold}


def test_in_shared_memory_next_to_nothing_is_sent(lives: Any) -> None:
    records = read_metrics(RunDirectory(lives[0] / "in shared memory" / "straight").metrics)[0]
    assert all(0 < record["wire_bytes"] < 1000 for record in records)


@pytest.mark.parametrize("name", MEETING)
def test_a_bad_step_of_a_rank_is_skipped_by_all_and_too_many_end_the_run(lives: Any, name: str) -> None:
    folder, seen = lives
    records = read_metrics(RunDirectory(folder / name / "spoilt").metrics)[0]
    assert [record.get("skipped") for record in records] == [None, 1, 1, 1]
    assert [record["step"] for record in records if record["loss"] != record["loss"]] == [2]
    for of_rank in seen[name]:
        assert of_rank["spoilt"]["finite"]
        assert "step 5" in of_rank["spoilt"]["message"] and "not finite on rank 1" in of_rank["spoilt"]["message"]
        assert "skipped 1 before (train.max_skipped)" in of_rank["spoilt"]["message"]


@pytest.mark.parametrize("name", ["int8", "zero2, int4", "powersgd"])
def test_one_rank_goes_on_where_several_were(
    corpus: Path, lives: Any, tmp_path: Path, reference: References, name: str
) -> None:
    shutil.copytree(lives[0] / name / "straight", tmp_path / "run")
    shutil.rmtree(RunDirectory(tmp_path / "run").checkpoints / f"step-{STEPS:08}")
    run(build_parts(recipe_of(corpus, WAYS[name]), tmp_path / "run", alone(), resume=True))
    assert losses_in(tmp_path / "run") == pytest.approx(reference(name)[0], rel=WAYS[name].near)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"exact": True, "codec": {"kind": "int8"}}, "set parallel.codec.kind none"),
        ({"shard": "zero2", "codec": {"kind": "powersgd"}}, "needs whole matrices on every rank.*accepted: none, bf16"),
        ({"optimizer": {"kind": "onebit_adam"}}, "set 'parallel.codec.kind'"),
        ({"tensor": 2, "shard": "zero3", "codec": {"kind": "int8"}}, "drift apart.*accepted: 'replicate', 'zero1'"),
        ({"tensor": 2, "codec": {"kind": "powersgd"}}, "needs whole matrices on every rank.*accepted: none, bf16"),
        ({"sync": "local", "codec": {"kind": "powersgd"}}, "needs whole matrices, and local updates.*accepted: none, bf16"),
        ({"sync": "local", "tensor": 2, "codec": {"kind": "int8"}}, "drift apart.*accepted .*: none"),
        ({"sync": "local", "local": {"every": 4, "fragments": 3, "overlap": 2}}, "one fragment travels at a time"),
        ({"sync": "local", "shard": "zero1", "shard_ranks": 2, "local": {"every": 2, "fragments": 3}}, "one fragment"),
    ],
)
def test_what_cannot_be_together_is_told_before_a_start(corpus: Path, keys: Any, message: str) -> None:
    optimizer = keys.get("optimizer", {})
    recipe = recipe_of(corpus, Way({key: value for key, value in keys.items() if key != "optimizer"}, optimizer=optimizer))
    with pytest.raises(RecipeError, match=message):
        estimate(recipe, Corpus.open(corpus).vocabulary, 4)
