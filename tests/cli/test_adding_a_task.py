"""The task of docs/tasks.md, from its page: learnt, predicted, evaluated again."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import pytest

from shoal.core import recipe_file
from shoal.core.recipe import Labelled, Objective, Recipe
from shoal.core.recipe.fields import PositiveFloat, section
from shoal.tasks import LABELLED
from tests.cli.conftest import Shoal
from tests.train.classifiers import sentences, write_base, write_sentences

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
FILE, SETTINGS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the page says to write, and the four lines."""
    module = ModuleType("shoal.tasks.score")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(FILE, "docs/tasks.md", "exec"), module.__dict__)
    settings: dict[str, Any] = {"section": section, "PositiveFloat": PositiveFloat, "__name__": __name__}
    exec(compile(SETTINGS, "docs/tasks.md", "exec"), settings)
    annotations = {"task": Literal[*get_args(Objective), *get_args(Labelled), "score"], "score": settings["ScoreSettings"]}
    body = {"__annotations__": annotations, "task": "causal", "score": field(default_factory=settings["ScoreSettings"])}
    monkeypatch.setattr(recipe_file, "Recipe", section(type("Recipe", (Recipe,), body)))
    recipe_file.recipe_keys.cache_clear()
    monkeypatch.setitem(LABELLED, "score", module.Score)  # type: ignore[attr-defined]
    yield
    recipe_file.recipe_keys.cache_clear()


def test_the_task_of_the_page_runs(shoal: Shoal, task: None, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "score": len(row["text"])} for row in sentences()]
    write_sentences(Path("data.jsonl"), rows)
    words = ("finetune", "--task", "score", "--model", write_base(tmp_path / "base", "bert"), "--data", "data.jsonl")
    words += ("--train.compile", "off", "--score.unit", "30", "--optimizer.learning_rate", "1e-3", "--train.epochs", "4")
    result = json.loads(shoal(*words, "--json").out)
    assert result["eval_loss"] < result["evaluations"][0][1] and result["eval_error"] > 0
    again = json.loads(shoal("evaluate", "runs/run", "--json").out)
    assert again["eval_error"] == pytest.approx(result["eval_error"], rel=1e-5)
    write_sentences(Path("data.jsonl"), [*rows, {"text": "a", "score": "x"}])
    assert "data.jsonl:61: the score is 'x', not a number" in shoal(*words, "--overwrite").error
