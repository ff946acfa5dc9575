"""What a model learns: one file a task, and an explicit table of them."""

from collections.abc import Callable, Sequence
from typing import Any

from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.data.shards import TokenStream
from shoal.data.tokenizer import TextTokenizer
from shoal.models.config import TransformerConfig
from shoal.tasks.answer import Answer
from shoal.tasks.causal import Causal
from shoal.tasks.chat import Chat
from shoal.tasks.classify import Classify
from shoal.tasks.generate import Generate
from shoal.tasks.infill import Infill
from shoal.tasks.labelled import LabelledTask
from shoal.tasks.masked import Masked
from shoal.tasks.prefer import Prefer
from shoal.tasks.tag import Tag
from shoal.tasks.task import Batch, Task, TextTask
from shoal.tasks.translate import Translate

TASKS: dict[str, Callable[[Recipe, TextTokenizer, Sequence[TokenStream]], TextTask]] = {
    "causal": lambda recipe, tokenizer, streams: Causal(),
    "masked": Masked,
    "infill": lambda recipe, tokenizer, streams: Infill(recipe, tokenizer),
}
"""Name, as in the recipe's `task`, to what builds it for rows of some streams, one a corpus."""

LABELLED: dict[str, Any] = {
    "classify": Classify,
    "tag": Tag,
    "answer": Answer,
    "translate": Translate,
    "generate": Generate,
    "chat": Chat,
    "prefer": Prefer,
}
"""Tasks of fine-tuning, each a class that is a `LabelledTask`."""

ENCODERS = frozenset({"masked"})
"""Tasks for models that see both ways."""

DECODERS = frozenset({"translate", "generate", "chat", "prefer"})
"""Tasks of fine-tuning for models that see only what is before."""

FROM_RANDOM = frozenset({"classify", "translate", "generate"})
"""Tasks of fine-tuning that may start from random weights."""


def check_objective(recipe: Recipe) -> None:
    """`RecipeError` for a task that isn't learned from text alone."""
    if recipe.task not in TASKS:
        raise RecipeError(f"'task' is {recipe.task}, which labelled examples teach: that is for shoal finetune")


def check_labelled(recipe: Recipe, config: TransformerConfig) -> None:
    """`RecipeError` when the model, or the way in which it is divided or tuned, is not of the kind that the task is for."""
    if recipe.task not in DECODERS:
        return
    if not config.causal:
        raise RecipeError(
            f"task '{recipe.task}' needs a model that sees only what is before, and {_shape(recipe)} sees both ways: "
            "give a decoder by --model, e.g. one of `shoal pretrain`"
        )
    if config.head:
        raise RecipeError(
            f"task '{recipe.task}' needs a model that writes text, and {_shape(recipe)} has scores in its place: "
            "give the one that it was made from by --model"
        )
    if recipe.parallel.tensor > 1:
        raise RecipeError(
            f"'parallel.tensor' divides the vocabulary, over all of which task '{recipe.task}' looks at each token by "
            "itself; divide the model by --shard zero3 instead"
        )
    if recipe.tuning.what == "frozen":
        raise RecipeError(
            f"'tuning.what' frozen trains a head alone, and task '{recipe.task}' has none; accepted here: all, top, lora"
        )


def check_task(recipe: Recipe, config: TransformerConfig) -> None:
    """`RecipeError` when the model is not of the kind that the task is for."""
    if recipe.task in ENCODERS and config.causal:
        raise RecipeError(
            f"task '{recipe.task}' needs a model that sees both ways, and {_shape(recipe)} sees only what is before: take "
            "an encoder, such as 'model.preset' bert-mini or encoder-tiny"
        )
    if recipe.task not in ENCODERS and not config.causal:
        raise RecipeError(
            f"task '{recipe.task}' needs a model that sees only what is before, and {_shape(recipe)} sees both ways: take "
            "--task masked, or a decoder, such as 'model.preset' gpt2-small or llama-tiny"
        )
    if recipe.task == "masked" and not config.transform:
        raise RecipeError(
            "task 'masked' needs a model with a head that tells the masked words, and this one is a body alone, as "
            "BertModel is: start from a BertForMaskedLM or ModernBertForMaskedLM, or from a preset"
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


def _shape(recipe: Recipe) -> str:
    return f"'model.preset' {recipe.model.preset}" if not recipe.model.init_from else recipe.model.init_from


__all__ = [
    "DECODERS",
    "ENCODERS",
    "FROM_RANDOM",
    "LABELLED",
    "TASKS",
    "Answer",
    "Batch",
    "Causal",
    "Chat",
    "Classify",
    "Generate",
    "Infill",
    "LabelledTask",
    "Masked",
    "Prefer",
    "Tag",
    "Task",
    "TextTask",
    "Translate",
    "check_labelled",
    "check_objective",
    "check_task",
]
