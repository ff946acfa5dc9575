"""A model that was fine-tuned, back from its folder: itself, its tokenizer, and its task."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.core.device import moved
from shoal.core.errors import InputError
from shoal.core.files import read_json
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe_file import build_recipe
from shoal.data.examples.example import Example
from shoal.data.examples.texts import framing_tokenizer
from shoal.data.readers import Faults
from shoal.data.tokenizer import TextTokenizer, read_tokenizer
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import LABELLED, LabelledTask
from shoal.train.encoded import Encoded
from shoal.train.labelled_evaluation import LabelledEvaluator, LabelledSplit
from shoal.train.models import read_model


@dataclass(frozen=True)
class LabelledModel:
    """What predicting needs; `name`: the task's."""

    model: Transformer
    tokenizer: TextTokenizer
    name: str
    task: LabelledTask


CLASSIFIER = "ForSequenceClassification"
"""How `transformers` names a model that does what the task `classify` does."""


def is_labelled(directory: Path) -> bool:
    """Whether a model's folder, or a run's, says which task it was fine-tuned for."""
    return bool(_said_in(directory))


def task_name(directory: Path) -> str:
    """The task that a model's folder, or a run's, says it was fine-tuned for; empty where it says none."""
    return str(_said_in(directory).get("name", ""))


def _said_in(directory: Path) -> Mapping[str, Any]:
    config = find_model_directory(directory) / "config.json"
    return _said(read_json(config)) if config.exists() else {}


def read_labelled_model(
    directory: Path, given: Mapping[str, Any] | None = None, device: str | torch.device = "cpu"
) -> LabelledModel:
    """A model's folder, or a run's; `InputError` says what is wrong with it.

    `given`: keys of the task's section that the user says, among them those that a folder must not.
    """
    folder = find_model_directory(directory)
    model = read_model(build_recipe({"model": {"init_from": str(folder)}}).model)
    model = moved(model, device, folder).eval()
    tokenizer = framing_tokenizer(read_tokenizer(folder), model.config.causal)
    said = _said(read_json(folder / "config.json"))
    if said.get("name") not in LABELLED:
        raise InputError(f"{folder}: its config.json doesn't say which task it was fine-tuned for")
    name, length = said["name"], said.get("length", model.config.context)
    kind, given = LABELLED[name], given or {}
    settings = {key: value for key, value in dict(said.get("settings", {})).items() if key not in kind.outside}
    if unknown := [key for key in given if key not in kind.outside]:
        raise InputError(f"{folder}: is a model of task '{name}', which has no use for --{unknown[0]}")
    recipe = build_recipe({"task": name, name: {**settings, **given}})
    task: LabelledTask = kind(recipe, tokenizer, length, [])
    if task.head is not None and (task.head.kind, task.head.outputs) != (model.config.head, model.config.outputs):
        raise InputError(f"{folder}: its weights have no head for the task '{name}' that its config.json says")
    return LabelledModel(model, tokenizer, name, task)


def _said(config: Any) -> Mapping[str, Any]:
    """What a `config.json` says of the task; empty where it says nothing. A classifier of `transformers` says its labels."""
    if not isinstance(config, Mapping):
        return {}
    if isinstance(config.get("shoal_task"), Mapping):
        return config["shoal_task"]
    architecture, labels = (config.get("architectures") or [""])[0], config.get("id2label") or {}
    if not architecture.endswith(CLASSIFIER) or not labels:
        return {}
    names = [str(labels[number]) for number in sorted(labels, key=int)]
    several = config.get("problem_type") == "multi_label_classification"
    return {"name": "classify", "settings": {"labels": names, "several": several}}


def evaluate_labelled(
    labelled: LabelledModel,
    splits: Mapping[str, Sequence[Example]],
    faults: Faults,
    batch: int,
    predictions: Path | None = None,
) -> dict[str, Any]:
    """The task's figures on each split, by what stands before them; and, where asked, the predictions on the last one.

    These are a JSON object a line. What can't be used is for `faults`.
    """
    task, wire, found = labelled.task, Wire(World(device=labelled.model.head_weight.device)), []
    for name, examples in splits.items():
        encoded = Encoded.of(task, examples, faults).completed(task, wire)
        if not encoded.examples:
            raise InputError("no examples to evaluate on: the files have none, or none that can be used")
        found.append(LabelledSplit(name, encoded.examples, encoded.owners, encoded.rows(labelled.model)))
    evaluator = LabelledEvaluator(task, found, batch, wire, Axis(), nullcontext(), predictions=predictions)
    return evaluator(labelled.model)
