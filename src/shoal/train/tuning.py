"""How much of a model is fine-tuned, how fast each part of it, and the head that stands on it."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from shoal.core import recipe as schema
from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.core.seeds import generator
from shoal.models.config import TransformerConfig
from shoal.models.dropout import NAMES
from shoal.models.foreign import Foreign
from shoal.models.lora import Changes, adapt, fresh_changes
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import Head

HEAD = ("task_head.", "pooler.", "transform.")
"""How the names of what stands on the trunk begin."""


@torch.no_grad()
def tuned_model(base: Transformer, recipe: Recipe, head: Head | None, changes: Changes | None = None) -> Transformer:
    """A copy of the model with the task's head, whose weights, unless the model has them, come from the recipe's seed.

    `changes`: those of an adapter that is trained on. By `tuning.what: lora` there are new ones else.
    """
    tuning = recipe.tuning
    if tuning.what == "lora" and isinstance(base, Foreign):
        raise RecipeError("'tuning.what' lora changes models that Shoal has code of its own for; take frozen, top or all")
    config = with_head(base.config, tuning, head)
    if tuning.what == "frozen":
        config = _undropped(config, recipe.model)
    model = base.like(config)
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
    blocks = _top(model, tuning) if tuning.what == "top" else []
    learnt = {parameter for block in blocks for parameter in block.parameters()}
    for name, parameter in model.named_parameters():
        above = name.startswith((*HEAD, "norm.") if blocks else HEAD)
        parameter.requires_grad_(above or parameter in learnt or ".lora." in name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError("'tuning.what' frozen trains the head alone, and this task has none; take lora, top or all")


def _top(model: Transformer, tuning: schema.Tuning) -> list[nn.Module]:
    layers = len(model.blocks)
    if tuning.top > layers:
        raise RecipeError(f"'tuning.top' is {tuning.top}, and the model has {layers} blocks")
    return [*model.blocks][layers - tuning.top :]


def rate_multiples(model: Transformer, names: Iterable[str], tuning: schema.Tuning) -> dict[str, float]:
    """By parameter, its learning rate as a multiple of what the optimizer's settings say; `names` in the model's order.

    Each block has `layer_decay` times the rate of the one above it, and what lies under the first that of the first
    (Howard and Ruder 2018, arXiv:1801.06146, section 3.2).
    """
    numbers = {block: number for number, block in enumerate(model.blocks)}
    begins = {f"{name}.": numbers[module] for name, module in model.named_modules() if module in numbers}
    multiples, below = {}, True
    for name in names:
        number = next((number for begin, number in begins.items() if name.startswith(begin)), None)
        below = below and number is None
        if name.startswith(HEAD):
            multiples[name] = tuning.head_rate
        elif number is not None:
            multiples[name] = tuning.layer_decay ** (len(begins) - 1 - number)
        else:
            multiples[name] = tuning.layer_decay ** len(begins) if below else 1.0
    return multiples
