"""A model that was fine-tuned, back from its folder: itself, its tokenizer, and its task."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError
from shoal.core.files import read_json
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe_file import build_recipe
from shoal.data.examples.example import Example
from shoal.data.tokenizer import TextTokenizer, read_tokenizer
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import LABELLED, LabelledTask
from shoal.train.finetune import Encoded
from shoal.train.labelled_evaluation import LabelledEvaluator, LabelledSplit
from shoal.train.models import read_model


@dataclass(frozen=True)
class LabelledModel:
    """What predicting needs; `name`: the task's."""

    model: Transformer
    tokenizer: TextTokenizer
    name: str
    task: LabelledTask


def is_labelled(directory: Path) -> bool:
    """Whether a model's folder, or a run's, says which task it was fine-tuned for."""
    config = find_model_directory(directory) / "config.json"
    return config.exists() and "shoal_task" in read_json(config)


def read_labelled_model(directory: Path) -> LabelledModel:
    """A model's folder, or a run's; `InputError` says what is wrong with it."""
    folder = find_model_directory(directory)
    model = read_model(build_recipe({"model": {"init_from": str(folder)}}).model).eval()
    tokenizer = read_tokenizer(folder)
    said = read_json(folder / "config.json").get("shoal_task")
    if not isinstance(said, Mapping) or said.get("name") not in LABELLED or not isinstance(said.get("length"), int):
        raise InputError(f"{folder}: its config.json doesn't say which task it was fine-tuned for")
    name = said["name"]
    recipe = build_recipe({"task": name, name: said.get("settings", {})})
    return LabelledModel(model, tokenizer, name, LABELLED[name](recipe, tokenizer, said["length"], []))


def evaluate_labelled(
    labelled: LabelledModel, examples: Sequence[Example], batch: int, predictions: Path | None = None
) -> dict[str, Any]:
    """The task's figures on some examples; and, where asked, the predictions, a JSON object a line."""
    task = labelled.task
    encoded = Encoded.of(task, examples)
    split = LabelledSplit("eval", encoded.examples, encoded.owners, encoded.rows(labelled.model))
    evaluator = LabelledEvaluator(task, [split], batch, Wire(World()), Axis(), nullcontext(), predictions=predictions)
    return evaluator(labelled.model)
