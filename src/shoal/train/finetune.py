"""What fine-tuning learns from and with: labelled examples, a model to start from, and a task's head on it."""

import hashlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.core import native
from shoal.core.errors import InputError, RecipeError
from shoal.core.files import read_json
from shoal.core.model_directory import find_model_directory, write_adapter_directory, write_model_directory
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, merged, recipe_tree
from shoal.core.run_directory import RunDirectory
from shoal.core.seeds import generator
from shoal.data.batch_sizes import BatchSizes
from shoal.data.examples.rows import LabelledRows, Layout
from shoal.data.examples.splits import check_not_empty, read_splits
from shoal.data.examples.texts import framing_tokenizer
from shoal.data.grouping import pool_of
from shoal.data.ledger import read_ledger
from shoal.data.order import Order
from shoal.data.plan import Plan
from shoal.data.readers import Faults
from shoal.data.tokenizer import TextTokenizer
from shoal.models import hugging_face
from shoal.models.foreign import Foreign
from shoal.models.hugging_face.adapters import adapter_files, changes_from_hugging_face
from shoal.models.hugging_face.relatives import RELATIVES
from shoal.models.lora import Changes, changes_of, fold
from shoal.models.transformer import Transformer
from shoal.models.vocabulary import with_tokens
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire, digest
from shoal.parallel.world import World
from shoal.tasks import DECODERS, FROM_RANDOM, LABELLED, LabelledTask, check_labelled
from shoal.train.augmentation import check_augmentation, make_augmentation
from shoal.train.beginnings import Place, beginning
from shoal.train.cards import finetuned_card
from shoal.train.encoded import Encoded
from shoal.train.features import looked_up
from shoal.train.foreign import foreign_to_hugging_face
from shoal.train.labelled_evaluation import LabelledEvaluator, LabelledSplit
from shoal.train.material import Evaluate, Material
from shoal.train.models import make_transformer_config, read_adapter
from shoal.train.schedule import Budget
from shoal.train.tuning import freeze, tuned_model


@dataclass(frozen=True)
class Examined:
    """A run's examples, encoded, its model and its task, before anything is made, or removed, for it.

    `length`: tokens of an example, at most. `faults`: what was left out.
    """

    base: Transformer
    tokenizer: TextTokenizer
    length: int
    task: LabelledTask
    train: Encoded
    validation: Encoded
    test: Encoded
    faults: Faults


def examine(recipe: Recipe, place: Place | None = None) -> Examined:
    """Read and encode the recipe's examples for its model. Raises `InputError` for what can't work.

    `place`: where a tokenizer that is trained on the examples is kept, and told to the other ranks (None: nowhere).
    """
    kind = LABELLED[recipe.task]
    splits = read_splits(recipe.examples, kind.roles)
    # a label is no text that the tokenizer is to learn
    texts = [
        value
        for example in splits.train
        for name, value in example.values.items()
        if isinstance(value, str) and name in (kind.varied or [role.name for role in kind.roles])
    ]
    base, tokenizer = beginning(recipe, texts, place)
    check_labelled(recipe, base.config)
    tokenizer = framing_tokenizer(tokenizer, base.config.causal)
    length = min(recipe.examples.length or base.config.context, base.config.context)
    task = kind(recipe, tokenizer, length, splits.train)
    check_augmentation(recipe, task)
    if task.tokenizer.vocabulary > tokenizer.vocabulary:
        random = generator(recipe.seed, "new tokens")
        base = with_tokens(base, tokenizer.vocabulary, task.tokenizer.vocabulary, random)
    encoded = {}
    for name in ("train", "validation", "test"):
        examples = getattr(splits, name)
        encoded[name] = Encoded.of(task, examples, splits.faults)
        if examples:
            check_not_empty(name, getattr(recipe.examples, name) or recipe.examples.train, encoded[name].examples)
    return Examined(base, tokenizer, length, task, faults=splits.faults, **encoded)


def finetuning(
    recipe: Recipe, world: World, run: RunDirectory, examined: Examined | None = None, quiet: bool = False
) -> Material:
    """Labelled examples, and the recipe's model with the task's head. Raises `InputError` for what can't work."""
    if examined is None or not recipe.model.init_from:  # what was trained to be examined is kept nowhere
        examined = examine(recipe, Place(world, run))
    base, tokenizer, task = examined.base, examined.tokenizer, examined.task
    make = partial(tuned_model, base, recipe, task.head, _changes(recipe, base))
    model = make().to(world.device)
    freeze(model, recipe.tuning)
    parameters = sum(p.numel() for name, p in model.named_parameters() if ".lora." not in name)
    layout: Layout = "joined" if joins(model, recipe) else "padded"
    train, *others = (part.completed(task, Wire(world)) for part in (examined.train, examined.validation, examined.test))
    if _reads_by_length(run, layout):
        train = train.by_length()
    augmentation, varying = make_augmentation(recipe, world, task, base, tokenizer, train.examples)
    vary = None if augmentation is None else train.varied_by(augmentation, task)
    every = [train.rows(model, layout, vary), *(part.rows(model, layout) for part in others)]
    model, (rows, *held_out), told = looked_up(model, every, recipe, world, quiet)
    recipe = resolve(recipe, task, rows)
    order = order_of(recipe, rows)
    sizes = BatchSizes.of(recipe, rows.tokens / rows.samples)

    def evaluator(together: int, wire: Wire, data: Axis, precision: AbstractContextManager[None]) -> Evaluate:
        found = [
            LabelledSplit(name, part.examples, part.owners, its)
            for name, part, its in zip(("eval", "test"), others, held_out, strict=True)
            if part.examples
        ]
        return LabelledEvaluator(
            task, found, max(together, 32), wire, data, precision, recipe.evaluation.sequences, run.predictions
        )

    def write_model(folder: Path, weights: Mapping[str, Tensor], result: dict[str, Any]) -> None:
        trained = make()
        trained.load_state_dict(weights, strict=False)  # what was frozen is as it was
        if recipe.tuning.what == "lora":
            write_adapter(run.adapter, recipe, trained)
            fold(trained)
        write_finetuned(folder, recipe, task, examined.length, task.tokenizer, trained, result)

    identity = {"examples": rows.fingerprint}
    if recipe.tuning.what != "all":
        identity["frozen weights"] = _fingerprint(base)
    return Material(
        recipe,
        identity,
        model,
        task,
        Plan(rows, order, sizes),
        Budget.of(recipe.train),
        round(rows.tokens / rows.samples),
        parameters,
        evaluator,
        write_model,
        (*_notes(examined), *varying, *told),
        _facts(examined),
        alike=not task.writes and not 0 < recipe.evaluation.sequences < len(examined.validation.examples),
    )


def _fingerprint(model: Transformer) -> str:
    """Tells two models' weights apart."""
    told = hashlib.sha256()
    for name, value in model.state_dict().items():
        told.update(name.encode() + digest(value))
    return told.hexdigest()[:32]


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


def _reads_by_length(run: RunDirectory, layout: Layout) -> bool:
    """Whether samples are numbered by length: a run that goes on keeps to what it began with, perhaps on another device."""
    return read_ledger(run.ledger).group > 0 if run.ledger.exists() else layout == "padded"


def order_of(recipe: Recipe, rows: LabelledRows) -> Order:
    """Which sample comes when; of rows that are padded, a step's are of about one length."""
    if rows.layout == "joined":
        return Order(recipe.seed, rows.samples)
    group = recipe.train.global_batch
    return Order(recipe.seed, rows.samples, group, pool=pool_of(rows.samples, group))


def joins(model: Transformer, recipe: Recipe) -> bool:
    """Whether batches are rows without padding: where our attention kernel serves, in training as well."""
    config = model.config
    return (
        not isinstance(model, Foreign)
        and model.head_weight.device.type == "cpu"
        and recipe.train.precision == "fp32"
        and config.head_dim % 8 == 0
        and not config.dropped("attention")
        and native.available()
    )


def _changes(recipe: Recipe, base: Transformer) -> Changes | None:
    """Those of the adapter that is to be trained on."""
    adapter = read_adapter(recipe.model) if recipe.tuning.what == "lora" else None
    try:
        return None if adapter is None else changes_from_hugging_face(adapter, base.config)
    except ValueError as error:
        raise InputError(f"{recipe.model.adapter or recipe.model.init_from}: {error}") from None


def write_adapter(folder: Path, recipe: Recipe, model: Transformer) -> None:
    """Write what was learnt beside the model's weights, for those who have them.

    Not of RoBERTa and its like, which are read, and written, as another family: the names would be that family's.
    """
    base = find_model_directory(Path(recipe.model.init_from)).resolve()
    if read_json(base / "config.json").get("model_type") in RELATIVES:
        return
    plain = {name: value for name, value in model.state_dict().items() if ".lora." not in name}
    whole = Transformer(model.config).materialise()
    whole.load_state_dict(plain)
    weights = hugging_face.weights_to_hugging_face(whole)
    config, tensors = adapter_files(changes_of(model), model.config, weights, str(base), recipe.tuning.lora.dropout)
    write_adapter_directory(folder, config, tensors)


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
        config, weights = _in_their_layout(model, tokenizer)
    except ValueError as error:
        raise InputError(f"the model can't be written in the Hugging Face layout: {error}") from None
    config |= task.describe()
    config["shoal_task"] = {"name": recipe.task, "length": length, "settings": asdict(task.settings)}
    write_model_directory(folder, config, weights, tokenizer.write, finetuned_card(recipe, config, result))


def _in_their_layout(model: Transformer, tokenizer: TextTokenizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(model, Foreign):
        return foreign_to_hugging_face(model)
    config = hugging_face.config_to_hugging_face(model.config, tokenizer.end_of_text)
    return config, hugging_face.weights_to_hugging_face(model)


DEFAULTS: dict[str, Any] = {
    "model": {"preset": "", "attention_dropout": 0.0},
    "train": {"epochs": 3.0, "global_batch": 32},
    "optimizer": {"learning_rate": 5e-5, "beta2": 0.999, "weight_decay": 0.01},
    "schedule": {"kind": "linear", "warmup": 0.1, "final": 0.0},
    "evaluation": {"patience": 3, "metric": "auto"},
}
"""What a recipe for fine-tuning has where it doesn't say otherwise."""

RATES = {"frozen": 5e-3, "lora": 5e-4, "top": 1e-4}
"""Learning rates where less than all of a model is trained."""

RANDOM_RATE = 5e-4
"""Learning rate of random weights, which have nothing to forget."""

TASK_RATES = {"prefer": 5e-6}
"""Learning rates of tasks that would soon forget what the model knows."""


def finetuning_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe's tree has where it doesn't say otherwise."""
    tuning = tree.get("tuning")
    what = tuning.get("what") if isinstance(tuning, Mapping) else None
    defaults = {section: dict(values) for section, values in DEFAULTS.items()}
    if tree.get("task") in TASK_RATES:
        defaults["optimizer"]["learning_rate"] = TASK_RATES[tree["task"]]
    if what in RATES:
        defaults["optimizer"]["learning_rate"] = RATES[what]
    model = tree.get("model")
    if isinstance(model, Mapping) and model.get("preset") and not model.get("init_from"):
        defaults["optimizer"]["learning_rate"] = RANDOM_RATE
    return defaults


def check_finetuning(recipe: Recipe) -> None:
    """`RecipeError` for what can't be fine-tuned."""
    if recipe.task == Recipe().task:
        raise RecipeError(f"no task: say what the examples teach by --task, or in a recipe; accepted: {', '.join(LABELLED)}")
    if recipe.task not in LABELLED:
        raise RecipeError(f"'task' is {recipe.task}, which shoal pretrain is for; accepted here: {', '.join(LABELLED)}")
    if recipe.tuning.what == "lora" and recipe.parallel.tensor > 1:
        raise RecipeError(
            "'parallel.tensor' above 1 divides matrices that 'tuning.what' lora changes as wholes; take parallel.shard zero3"
        )
    if recipe.task == "prefer" and recipe.model.adapter and not recipe.prefer.reference:
        raise RecipeError(
            "'model.adapter' changes the model that answers are compared with: name what they are compared with as "
            "'prefer.reference', or start from the folder in which the adapter is merged, such as runs/NAME/model"
        )
    if recipe.model.init_from:
        return
    if recipe.task not in FROM_RANDOM or not recipe.model.preset:
        example = "llama-tiny" if recipe.task in DECODERS else "encoder-tiny"
        shape = (
            f", or, to start from random weights, a shape: --model.preset {example}" if recipe.task in FROM_RANDOM else ""
        )
        raise RecipeError(f"no model to start from: give its folder, or a run's, by --model DIR ('model.init_from'){shape}")
    if recipe.tuning.what != "all" or recipe.model.adapter:
        key = "model.adapter" if recipe.model.adapter else "tuning.what"
        raise RecipeError(
            f"'{key}' is for a model that has learnt something: name its folder by --model DIR ('model.init_from')"
        )
    check_labelled(recipe, make_transformer_config(recipe.model, recipe.tokenizer.vocabulary))


def _notes(examined: Examined) -> list[str]:
    faults, notes = examined.faults, []
    if faults.count:
        notes.append(f"{faults.count:,} examples left out, which can't be used: {'; '.join(faults.first)}")
    return [*notes, *examined.task.notes()]


def _facts(examined: Examined) -> dict[str, Any]:
    framed = getattr(examined.task, "framed", None)
    return {
        "examples": {name: len(getattr(examined, name).examples) for name in ("train", "validation", "test")},
        "examples_left_out": examined.faults.count,
        "texts_cut": framed.cut if framed is not None else 0,
    }
