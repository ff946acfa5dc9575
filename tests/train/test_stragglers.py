"""A slow rank is named, once, and nobody else is."""

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from torch import Tensor

from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.models.transformer import Transformer
from shoal.parallel.world import World
from shoal.tasks import Task
from shoal.train.loop import train
from shoal.train.stragglers import Stragglers
from shoal.train.telemetry import read_metrics
from tests.ranks import run_ranks
from tests.train.runs import build_parts, tiny_recipe

Row = tuple[float, float, float]


def observe(size: int, steps: list[list[Row]]) -> list[str]:
    stragglers = Stragglers(0, size)
    found = (
        stragglers.find([value for row in rows for value in (*row, 0.0, 0.0)], step) for step, rows in enumerate(steps, 1)
    )
    return [text for texts in found for text in texts]


def test_a_rank_adds_its_own_row_of_the_last_step() -> None:
    stragglers = Stragglers(1, 3)
    assert stragglers.rows() == [0.0] * 15
    stragglers.keep(0.5, 0.1, 0.2, 1000)
    rows = stragglers.rows()
    rows[stragglers.place_of_fault] = 1.0
    assert rows == [0, 0, 0, 0, 0, 0.5, 0.1, 0.2, 1000, 1, 0, 0, 0, 0, 0]
    assert stragglers.not_finite(rows) == [1]


def test_all_ranks_figures_of_the_step_before_are_told_by_rank() -> None:
    rows = [0.5, 0.1, 0.2, 1000, 0, 0.123456, 0.01, 0.02, 123456, 0]
    assert Stragglers(0, 2).by_rank(rows) == {
        "step_seconds": [0.5, 0.1235],
        "data_seconds": [0.1, 0.01],
        "sync_seconds": [0.2, 0.02],
        "wire_bytes": [1000, 123500],
    }
    assert Stragglers(0, 2).by_rank([0.0] * 10) is None
    assert Stragglers(0, 1).by_rank(rows[:5]) is None


def test_a_slow_rank_is_named_once_with_its_steps_and_times() -> None:
    usual: list[Row] = [(0.44, 0.0, 0.22), (0.44, 0.0, 0.21), (0.44, 0.0, 0.23)]
    assert observe(4, [[*usual, (0.44, 0.0, 0.04)]] * 30) == [
        "rank 3 was 1.8x slower than the median over steps 1-5: busy 0.4 s a step, others 0.22 s"
    ]


def test_of_two_ranks_the_slower_is_named_and_why_where_it_is_the_data() -> None:
    told = observe(2, [[(0.5, 0.4, 0.0), (0.5, 0.0, 0.4)]] * 10)
    assert told == [
        "rank 0 was 5.0x slower than the median over steps 1-5: "
        "busy 0.5 s a step (0.4 s of it reading data), others 0.1 s"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("now and then", [[(0.5, 0, 0.3), (0.5, 0, 0.3), (0.5, 0, 0.0 if step % 3 == 0 else 0.3)] for step in range(30)]),
        ("by too little", [[(0.5, 0, 0.3), (0.5, 0, 0.3), (0.5, 0, 0.22)]] * 30),
        ("of steps that are short anyway", [[(0.011, 0, 0.01), (0.011, 0, 0.01), (0.011, 0, 0.005)]] * 30),
    ],
)
def test_who_is_slow_like_this_is_not_named(name: str, steps: list[list[Row]]) -> None:
    assert observe(3, steps) == [], name


@dataclass(frozen=True)
class Slowed:
    """A task whose loss takes longer here."""

    task: Task
    seconds: float

    def batch(self, *arguments: Any) -> Tensor:
        return self.task.batch(*arguments)

    def loss(self, model: Transformer, batch: Tensor) -> tuple[Tensor, Tensor]:
        Event().wait(self.seconds)
        return self.task.loss(model, batch)


def train_with_one_slow_rank(
    world: World, recipe: Recipe, folder: Path, slow: int
) -> tuple[list[str], list[dict[str, Any]]]:
    parts = build_parts(recipe, folder, world)
    notes: list[str] = []
    if world.is_main:
        parts.telemetry.note = notes.append
    if world.rank == slow:
        parts = replace(parts, task=Slowed(parts.task, 0.15))
    train(parts)
    parts.telemetry.close()
    return notes, read_metrics(RunDirectory(folder).metrics)[0] if world.is_main else []


def test_of_real_ranks_the_slow_one_is_named_in_log_and_metrics(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, train={"steps": 14})
    notes, records = run_ranks(3, train_with_one_slow_rank, recipe, tmp_path, 2)[0]
    told = [text for record in records for text in record.get("stragglers", [])]
    assert notes == told
    waited = records[-1]["ranks"]["sync_seconds"]
    assert len(waited) == 3
    assert waited.index(min(waited)) == 2
    assert all(records[-1]["ranks"]["wire_bytes"])
    assert "ranks" not in records[0]
    assert sum("rank 2 was" in text for text in told) == 1
