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
from shoal.data.readers import Faults
from shoal.data.tokenizer import TextTokenizer
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import LABELLED, LabelledTask
from shoal.train.finetune import Encoded
from shoal.train.labelled_evaluation import LabelledEvaluator, LabelledSplit


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


def labelled_model(
    model: Transformer, tokenizer: TextTokenizer, directory: Path, given: Mapping[str, Any] | None = None
) -> LabelledModel:
    """The model with the task that its `config.json` says; `InputError` where that can't be made.

    `given`: keys of the task's section that the user says, among them those that a folder must not.
    """
    folder = find_model_directory(directory)
    said = read_json(folder / "config.json").get("shoal_task")
    if not isinstance(said, Mapping) or said.get("name") not in LABELLED or not isinstance(said.get("length"), int):
        raise InputError(f"{folder}: its config.json doesn't say which task it was fine-tuned for")
    name = said["name"]
    kind, given = LABELLED[name], given or {}
    settings = {key: value for key, value in dict(said.get("settings", {})).items() if key not in kind.outside}
    if unknown := [key for key in given if key not in kind.outside]:
        raise InputError(f"{folder}: is a model of task '{name}', which has no use for --{unknown[0]}")
    recipe = build_recipe({"task": name, name: {**settings, **given}})
    return LabelledModel(model, tokenizer, name, kind(recipe, tokenizer, said["length"], []))


def evaluate_labelled(
    labelled: LabelledModel, examples: Sequence[Example], batch: int, predictions: Path | None = None
) -> dict[str, Any]:
    """The task's figures on some examples; and, where asked, the predictions, a JSON object a line."""
    task = labelled.task
    wire = Wire(World())
    encoded = Encoded.of(task, examples, Faults()).completed(task, wire)
    split = LabelledSplit("eval", encoded.examples, encoded.owners, encoded.rows(labelled.model))
    evaluator = LabelledEvaluator(task, [split], batch, wire, Axis(), nullcontext(), predictions=predictions)
    return evaluator(labelled.model)
