"""How much of a model is fine-tuned, and the head that stands on it."""

from dataclasses import replace

import torch

from shoal.core import recipe as schema
from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.core.seeds import generator
from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import Head


@torch.no_grad()
def tuned_model(base: Transformer, recipe: Recipe, head: Head | None) -> Transformer:
    """A copy of the model with the task's head, whose weights, unless the model has them, come from the recipe's seed."""
    config = with_head(base.config, recipe.tuning, head)
    model = base.like(config)
    model.initialise(generator(recipe.seed, "head"))
    there = base.state_dict()
    for name, parameter in model.named_parameters():
        if name in there and there[name].shape == parameter.shape:
            parameter.copy_(there[name])
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


def freeze(model: Transformer, tuning: schema.Tuning) -> None:
    """Leave out of training what the recipe doesn't want trained."""
    if tuning.what == "all":
        return
    trained = {"frozen": (), "top": (*(f"blocks.{index}." for index in _top(model, tuning)), "norm.")}[tuning.what]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith((*trained, "task_head.", "pooler.", "transform.")))


def _top(model: Transformer, tuning: schema.Tuning) -> range:
    layers = len(model.blocks)
    if tuning.top > layers:
        raise RecipeError(f"'tuning.top' is {tuning.top}, and the model has {layers} blocks")
    return range(layers - tuning.top, layers)
