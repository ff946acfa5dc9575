"""What a run learns from and with, before anything is divided over ranks: pre-training's is made of corpora.

Fine-tuning makes its own (`train.finetune`); the loop, the strategies and the checkpoints are the same for both.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.core.errors import InputError, RecipeError
from shoal.core.recipe import Recipe
from shoal.data.pieces import holds_document, longest_document
from shoal.data.plan import Plan, open_corpora, plan_evaluation, plan_training
from shoal.data.shards import Corpus, Split
from shoal.data.tokenizer import read_tokenizer
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import TASKS, Task, TextTask, check_task
from shoal.train.evaluation import Evaluator
from shoal.train.model_directory import write_pretrained
from shoal.train.models import build_model
from shoal.train.schedule import Budget

Evaluate = Callable[..., dict[str, Any]]
"""A model, and whether it is the last evaluation (`final`), to what a task measures."""

WriteModel = Callable[[Path, Mapping[str, Tensor], dict[str, Any]], None]
"""Writes a trained model's folder from the weights that were trained, given the run's result."""


@dataclass(frozen=True)
class Material:
    """`recipe` with what only the material tells filled in. `identity`: what must be the same on all ranks, by what it is
    called. `tokens`: of a row, about. `parameters`: of the model that is written. `notes`: what is to be told before the
    run; `facts`: what its result tells beside. `alike`: as in `train.loop.Parts`.

    `evaluator`: given how many rows are computed at once, the wire, the axis of data ranks and the precision.
    """

    recipe: Recipe
    identity: dict[str, str]
    model: Transformer
    task: Task
    plan: Plan
    budget: Budget
    tokens: int
    parameters: int
    evaluator: Callable[[int, Wire, Axis, AbstractContextManager[None]], Evaluate]
    write_model: WriteModel
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    alike: bool = False


Gather = Callable[[Recipe, World], Material]
"""How a verb comes to its material."""


def pretraining(recipe: Recipe, world: World) -> Material:
    """Prepared corpora, and the recipe's model. Raises `InputError` for what can't work."""
    corpora = open_corpora(recipe)
    corpus = corpora[0]
    model = build_model(recipe, corpus.vocabulary, world.device)
    check_task(recipe, model.config)
    task, context = build_task(recipe, corpora, "train"), model.config.context

    def evaluator(rows: int, wire: Wire, data: Axis, precision: AbstractContextManager[None]) -> Evaluate:
        settings = recipe.evaluation
        return Evaluator(
            build_task(recipe, corpora, "held_out"), plan_evaluation(recipe, corpora, context, task.framing), rows, wire,
            data, precision, settings.sequences, settings.final_sequences,
        )  # fmt: skip

    def write_model(folder: Path, weights: Mapping[str, Tensor], result: dict[str, Any]) -> None:
        trained = Transformer(model.config).materialise()
        trained.load_state_dict(weights)
        write_pretrained(folder, recipe, corpus, trained, result)

    return Material(
        recipe,
        {"corpus": " ".join(corpus.fingerprint for corpus in corpora)},
        model,
        task,
        plan_rows(recipe, corpora, task, context),
        Budget.of(recipe.train),
        context,
        sum(parameter.numel() for parameter in model.parameters()),
        evaluator,
        write_model,
        alike=recipe.evaluation.sequences == recipe.evaluation.final_sequences,
    )


def build_task(recipe: Recipe, corpora: list[Corpus], split: Split = "train") -> TextTask:
    """The recipe's task, for the corpora's tokenizer and rows of a split of them."""
    tokenizer = read_tokenizer(corpora[0].tokenizer_path)
    return TASKS[recipe.task](recipe, tokenizer, [corpus.split(split) for corpus in corpora])


def plan_rows(recipe: Recipe, corpora: list[Corpus], task: TextTask, context: int) -> Plan:
    """What a run of the recipe reads, laid out for its task; `InputError` where that would teach nothing."""
    _check_lengths(recipe, corpora, task, context)
    return plan_training(recipe, corpora, context, task.framing, Budget.of(recipe.train).expected_steps)


def _check_lengths(recipe: Recipe, corpora: list[Corpus], task: TextTask, context: int) -> None:
    """A task that leaves short documents out must find some that are long enough: a budget of tokens would never end."""
    if task.least == 1:
        return
    if context < 2 * task.least:
        raise RecipeError(
            f"'model.context' is {context}, and task '{recipe.task}' learns nothing of documents of which a row holds fewer "
            f"than {task.least} tokens; accepted: {2 * task.least} and more"
        )
    trains = [(corpus.split("train"), corpus.end_of_text) for corpus in corpora]
    if not any(holds_document(stream, end, task.least) for stream, end in trains):
        longest = max(longest_document(stream, end) for stream, end in trains)
        raise InputError(
            f"{', '.join(recipe.corpus_directories)}: the longest document has {longest} tokens, and task '{recipe.task}' "
            f"learns nothing of those with fewer than {task.least}: prepare it with longer documents, as a file each "
            "instead of a line each"
        )
