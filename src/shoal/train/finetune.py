"""What fine-tuning learns from and with: labelled examples, a model to start from, and a task's head on it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.core import native
from shoal.core.errors import InputError, RecipeError
from shoal.core.model_directory import write_model_directory
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, merged, recipe_tree
from shoal.core.run_directory import RunDirectory
from shoal.data.batch_sizes import BatchSizes
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows, Layout, Sample
from shoal.data.examples.splits import read_splits
from shoal.data.order import Order
from shoal.data.plan import Plan
from shoal.data.readers import Faults
from shoal.data.tokenizer import TextTokenizer
from shoal.models import hugging_face
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import LABELLED, WRITERS, LabelledTask, check_labelled
from shoal.train.beginnings import beginning
from shoal.train.cards import finetuned_card
from shoal.train.labelled_evaluation import LabelledEvaluator, LabelledSplit
from shoal.train.material import Evaluate, Material
from shoal.train.models import make_transformer_config
from shoal.train.schedule import Budget
from shoal.train.tuning import freeze, tuned_model


@dataclass(frozen=True)
class Encoded:
    """A split's examples, and their samples; `owners`: of which example each sample is."""

    examples: list[Example]
    samples: list[Sample]
    owners: list[int]

    @classmethod
    def of(cls, task: LabelledTask, examples: Sequence[Example], faults: Faults | None = None) -> "Encoded":
        """Every example's samples; `InputError` names the example that can't be used, unless `faults` are skipped."""
        used: list[Example] = []
        samples: list[Sample] = []
        owners: list[int] = []
        for example in examples:
            try:
                its = task.samples(example)
            except InputError as error:
                (faults or Faults()).meet(error)
                continue
            samples += its
            owners += [len(used)] * len(its)
            used.append(example)
        if examples and not used:
            raise InputError(f"{examples[0].where}, and those after it: none of them can be used")
        return cls(used, samples, owners)

    def rows(self, model: Transformer, layout: Layout = "padded") -> LabelledRows:
        """The samples as the model reads them."""
        return LabelledRows(self.samples, model.config.causal, layout)


def finetuning(recipe: Recipe, world: World, run: RunDirectory) -> Material:
    """Labelled examples, and the recipe's model with the task's head. Raises `InputError` for what can't work."""
    kind = LABELLED[recipe.task]
    splits = read_splits(recipe.examples, kind.roles)
    texts = [value for example in splits.train for value in example.values.values() if isinstance(value, str)]
    base, tokenizer = beginning(recipe, world, run, texts)
    check_labelled(recipe, base.config)
    length = min(recipe.examples.length or base.config.context, base.config.context)
    task = kind(recipe, tokenizer, length, splits.train)
    make = partial(tuned_model, base.cpu(), recipe, task.head)
    model = make().to(world.device)
    freeze(model, recipe.tuning)
    train, *others = (
        Encoded.of(task, examples, splits.faults) for examples in (splits.train, splits.validation, splits.test) if examples
    )
    layout: Layout = "joined" if joins(model, recipe) else "padded"
    rows = train.rows(model, layout)
    recipe = resolve(recipe, task, rows)
    order = Order(recipe.seed, rows.samples)
    sizes = BatchSizes.of(recipe, rows.tokens / rows.samples)

    def evaluator(together: int, wire: Wire, data: Axis, precision: AbstractContextManager[None]) -> Evaluate:
        found = [
            LabelledSplit(name, part.examples, part.owners, part.rows(model, layout))
            for name, part in zip(("eval", "test"), others, strict=False)
        ]
        return LabelledEvaluator(
            task, found, max(together, 32), wire, data, precision, recipe.evaluation.sequences, run.predictions
        )

    def write_model(folder: Path, weights: Mapping[str, Tensor], result: dict[str, Any]) -> None:
        trained = make()
        trained.load_state_dict(weights, strict=False)  # what was frozen is as it was
        write_finetuned(folder, recipe, task, length, tokenizer, trained, result)

    return Material(
        recipe,
        {"examples": rows.fingerprint},
        model,
        task,
        Plan(rows, order, sizes),
        Budget.of(recipe.train),
        round(rows.tokens / rows.samples),
        evaluator,
        write_model,
        tuple(_notes(task, splits.faults.count)),
    )


def resolve(recipe: Recipe, task: LabelledTask, rows: LabelledRows) -> Recipe:
    """The recipe with what only the examples tell: the steps of its epochs, one of which lies between evaluations."""
    train = recipe.train
    epoch = max(1, math.ceil(rows.samples / train.global_batch))
    changes: dict[str, dict[str, Any]] = {"train": {}, "evaluation": {}}
    steps = math.ceil(train.epochs * rows.samples / train.global_batch)
    if train.epochs and (not train.steps or steps < train.steps):
        changes["train"]["steps"] = max(1, steps)
    if not recipe.evaluation.every:
        changes["evaluation"]["every"] = epoch
    if recipe.evaluation.metric == "auto":
        changes["evaluation"]["metric"] = task.metric
    return build_recipe(merged(recipe_tree(recipe), changes))


def joins(model: Transformer, recipe: Recipe) -> bool:
    """Whether batches are rows without padding: where our attention kernel serves, in training as well."""
    config = model.config
    return (
        model.head_weight.device.type == "cpu"
        and recipe.train.precision == "fp32"
        and config.head_dim % 8 == 0
        and not config.dropped("attention")
        and native.available()
    )


def write_finetuned(
    folder: Path,
    recipe: Recipe,
    task: LabelledTask,
    length: int,
    tokenizer: TextTokenizer,
    model: Transformer,
    result: dict[str, Any],
) -> None:
    """Write the model's folder; its `config.json` says what the task is, enough to evaluate it again."""
    try:
        config = hugging_face.config_to_hugging_face(model.config, tokenizer.end_of_text) | task.describe()
    except ValueError as error:
        raise InputError(f"the model can't be written in the Hugging Face layout: {error}") from None
    config["shoal_task"] = {"name": recipe.task, "length": length, "settings": asdict(task.settings)}
    weights = hugging_face.weights_to_hugging_face(model)
    write_model_directory(folder, config, weights, tokenizer.write, finetuned_card(recipe, config, result))


DEFAULTS: dict[str, Any] = {
    "model": {"preset": "", "attention_dropout": 0.0},
    "train": {"epochs": 3.0, "global_batch": 32},
    "optimizer": {"learning_rate": 5e-5, "beta2": 0.999, "weight_decay": 0.01},
    "schedule": {"kind": "linear", "warmup": 0.1, "final": 0.0},
    "evaluation": {"patience": 3, "metric": "auto"},
}
"""What a recipe for fine-tuning has where it doesn't say otherwise."""

RATES = {"frozen": 1e-3, "lora": 5e-4, "top": 1e-4}
"""Learning rates where less than all of a model is trained."""


def finetuning_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe's tree has where it doesn't say otherwise."""
    tuning = tree.get("tuning")
    what = tuning.get("what") if isinstance(tuning, Mapping) else None
    defaults = {section: dict(values) for section, values in DEFAULTS.items()}
    if what in RATES:
        defaults["optimizer"]["learning_rate"] = RATES[what]
    return defaults


def check_finetuning(recipe: Recipe) -> None:
    """`RecipeError` for what can't be fine-tuned."""
    if recipe.task not in LABELLED:
        raise RecipeError(f"'task' is {recipe.task}, which shoal pretrain is for; accepted here: {', '.join(LABELLED)}")
    if recipe.parallel.sync == "server":
        raise RecipeError("'parallel.sync' server is for shoal pretrain; accepted here: auto, every, local")
    if recipe.model.init_from:
        return
    if recipe.task not in WRITERS or not recipe.model.preset:
        shape = ", or, to start from random weights, a shape: --model.preset llama-tiny" if recipe.task in WRITERS else ""
        raise RecipeError(f"no model to start from: give its folder, or a run's, by --model DIR ('model.init_from'){shape}")
    check_labelled(recipe, make_transformer_config(recipe.model, recipe.tokenizer.vocabulary))


def _notes(task: LabelledTask, left_out: int) -> list[str]:
    notes = [f"{left_out:,} examples left out, which can't be used"] if left_out else []
    return notes + task.notes()
