"""How much of a model is fine-tuned, how fast each part of it, and the head that stands on it."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from shoal.core import recipe as schema
from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.core.seeds import generator
from shoal.models.config import TransformerConfig
from shoal.models.dropout import NAMES
from shoal.models.lora import Changes, adapt, fresh_changes
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import Head

HEAD = ("task_head.", "pooler.", "transform.")
"""How the names of what stands on the trunk begin."""

BELOW = ("embedding.", "position.", "segment.", "embedding_norm.")
"""And those of what lies under the first block."""


@torch.no_grad()
def tuned_model(base: Transformer, recipe: Recipe, head: Head | None, changes: Changes | None = None) -> Transformer:
    """A copy of the model with the task's head, whose weights, unless the model has them, come from the recipe's seed.

    `changes`: those of an adapter that is trained on. By `tuning.what: lora` there are new ones else.
    """
    tuning = recipe.tuning
    config = with_head(base.config, tuning, head)
    if tuning.what == "frozen":
        config = _undropped(config, recipe.model)
    model = Transformer(config).materialise()
    model.initialise(generator(recipe.seed, "head"))
    there = base.state_dict()
    for name, parameter in model.named_parameters():
        if name in there and there[name].shape == parameter.shape:
            parameter.copy_(there[name])
    if tuning.what == "lora":
        lora = tuning.lora
        try:
            if changes is None:
                changes = fresh_changes(config, lora.targets, lora.rank, lora.alpha, generator(recipe.seed, "lora"))
            adapt(model, changes, lora.dropout)
        except ValueError as error:
            raise RecipeError(f"'tuning.lora': {error}") from None
    return model


def with_head(config: TransformerConfig, tuning: schema.Tuning, head: Head | None) -> TransformerConfig:
    """The model's shape with the head in place of what predicts words; as it is without one."""
    if head is None:
        return config
    pooling = tuning.pooling if tuning.pooling != "auto" else "last" if config.causal else "first"
    if config.causal and pooling == "first":
        raise RecipeError("'tuning.pooling' first: a decoder's first token has seen nothing of the text; take last, or mean")
    bert = not config.causal and bool(config.segments)
    modern = not config.causal and not config.segments
    return replace(
        config, head=head.kind, outputs=head.outputs, pooling=pooling, head_dropout=tuning.dropout, tied=True,
        head_bias=False, relation=False, transform=modern, pooler=bert and head.kind == "sequence" and pooling == "first",
    )  # fmt: skip


def _undropped(config: TransformerConfig, settings: schema.Model) -> TransformerConfig:
    """Without dropout in the trunk: what is computed once can't be dropped anew."""
    for name in NAMES:
        if getattr(settings, name):
            raise RecipeError(
                f"'model.{name}' is {getattr(settings, name)}, and by 'tuning.what' frozen nothing is dropped but before "
                "the head ('tuning.dropout'): leave it out"
            )
    return replace(
        config, dropout=0.0, attention_dropout=None, residual_dropout=None, embedding_dropout=None, layer_drop=0.0
    )


def freeze(model: Transformer, tuning: schema.Tuning) -> None:
    """Leave out of training what the recipe doesn't want trained; `RecipeError` where nothing is left."""
    if tuning.what == "all":
        return
    top = _top(model, tuning) if tuning.what == "top" else range(0)
    begins = (*HEAD, *(f"blocks.{index}." for index in top), *(("norm.",) if top else ()))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(begins) or ".lora." in name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError("'tuning.what' frozen trains the head alone, and this task has none; take lora, top or all")


def _top(model: Transformer, tuning: schema.Tuning) -> range:
    layers = len(model.blocks)
    if tuning.top > layers:
        raise RecipeError(f"'tuning.top' is {tuning.top}, and the model has {layers} blocks")
    return range(layers - tuning.top, layers)


def rate_multiples(names: Iterable[str], layers: int, tuning: schema.Tuning) -> dict[str, float]:
    """By parameter, its learning rate as a multiple of what the optimizer's settings say.

    Each block has `layer_decay` times the rate of the one above it, and what lies under the first that of the first
    (Howard and Ruder 2018, arXiv:1801.06146, section 3.2, whose decay is 1 / 2.6; a head is at the rate of the last block).
    """
    return {name: _multiple(name, layers, tuning) for name in names}


def _multiple(name: str, layers: int, tuning: schema.Tuning) -> float:
    if name.startswith(HEAD):
        return tuning.head_rate
    if name.startswith("blocks."):
        return tuning.layer_decay ** (layers - 1 - int(name.split(".")[1]))
    return tuning.layer_decay**layers if name.startswith(BELOW) else 1.0
