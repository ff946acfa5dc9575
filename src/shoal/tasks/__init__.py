"""What a model learns: one file a task, and an explicit table of them."""

from collections.abc import Callable
from typing import Any

from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.data.shards import TokenStream
from shoal.data.tokenizer import TextTokenizer
from shoal.models.config import TransformerConfig
from shoal.tasks.causal import Causal
from shoal.tasks.classify import Classify
from shoal.tasks.generate import Generate
from shoal.tasks.infill import Infill
from shoal.tasks.labelled import LabelledTask
from shoal.tasks.masked import Masked
from shoal.tasks.task import Batch, Task
from shoal.tasks.translate import Translate

TASKS: dict[str, Callable[[Recipe, TextTokenizer, TokenStream | None], Task]] = {
    "causal": lambda recipe, tokenizer, stream: Causal(),
    "masked": Masked,
    "infill": lambda recipe, tokenizer, stream: Infill(recipe, tokenizer),
}
"""Name, as in the recipe's `task`, to what builds it for rows of a stream."""

LABELLED: dict[str, Any] = {
    "classify": Classify,
    "translate": Translate,
    "generate": Generate,
}
"""Tasks of fine-tuning, each a class that is a `LabelledTask`."""

ENCODERS = frozenset({"masked"})
"""Tasks for models that see both ways."""

WRITERS = frozenset({"translate", "generate"})
"""Tasks of fine-tuning that write text, for models that see only what is before; these may start from random weights."""


def check_objective(recipe: Recipe) -> None:
    """`RecipeError` for a task that isn't learned from text alone."""
    if recipe.task not in TASKS:
        raise RecipeError(f"'task' is {recipe.task}, which labelled examples teach: that is for shoal finetune")


def check_task(recipe: Recipe, config: TransformerConfig) -> None:
    """`RecipeError` when the model is not of the kind that the task is for."""
    if recipe.task in ENCODERS and config.causal:
        raise RecipeError(
            f"task '{recipe.task}' needs a model that sees both ways, and 'model.preset' {recipe.model.preset} sees only "
            "what is before: use an encoder, e.g. --model.preset bert-mini or encoder-tiny"
        )
    if recipe.task not in ENCODERS and not config.causal:
        raise RecipeError(
            f"task '{recipe.task}' needs a model that sees only what is before, and 'model.preset' {recipe.model.preset} "
            "sees both ways: use --task masked, or a decoder, e.g. --model.preset gpt2-small or llama-tiny"
        )
    if recipe.task == "masked" and recipe.masked.relation != "none" and not config.relation:
        raise RecipeError(
            f"'masked.relation' is {recipe.masked.relation}, and this model has no layer for it: use a BERT, e.g. "
            "--model.preset bert-mini"
        )
    if recipe.task in ENCODERS and recipe.parallel.tensor > 1:
        raise RecipeError(
            f"'parallel.tensor' divides the vocabulary, over all of which task '{recipe.task}' counts right answers; divide "
            "the model by --shard zero3 instead"
        )


def check_labelled(recipe: Recipe, config: TransformerConfig) -> None:
    """`RecipeError` when the model is not of the kind that a task of fine-tuning is for."""
    if recipe.task not in WRITERS:
        return
    if not config.causal:
        raise RecipeError(
            f"task '{recipe.task}' writes text, and a model that sees both ways can't: start from a decoder (GPT-2, Llama, "
            "Qwen3)"
        )
    if recipe.parallel.tensor > 1:
        raise RecipeError(
            f"'parallel.tensor' divides the vocabulary, from all of which task '{recipe.task}' chooses; divide the model by "
            "--shard zero3 instead"
        )


__all__ = [
    "ENCODERS",
    "LABELLED",
    "TASKS",
    "WRITERS",
    "Batch",
    "Causal",
    "Classify",
    "Generate",
    "Infill",
    "LabelledTask",
    "Masked",
    "Task",
    "Translate",
    "check_labelled",
    "check_objective",
    "check_task",
]
