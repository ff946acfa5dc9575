"""From a recipe's `model` to a Transformer: random weights in a preset's shape, or those of a folder."""

from dataclasses import replace
from pathlib import Path

import torch

from shoal.core import recipe as schema
from shoal.core.errors import InputError, RecipeError
from shoal.core.model_directory import adapter_of, find_model_directory, read_adapter_directory, read_model_directory
from shoal.core.recipe import Recipe
from shoal.core.seeds import generator
from shoal.data.shards import Corpus
from shoal.data.tokenizer import difference, read_tokenizer
from shoal.models import dropout, hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.hugging_face.adapters import Adapter, merged
from shoal.models.presets import make_config
from shoal.models.transformer import Transformer
from shoal.train import foreign


def make_transformer_config(settings: schema.Model, vocabulary: int, related: bool = False) -> TransformerConfig:
    """The recipe's shape, with a layer for how two texts are `related`, if need be; `RecipeError` when it doesn't fit."""
    multiple = settings.vocabulary_multiple or 1
    vocabulary = -(-vocabulary // multiple) * multiple
    try:
        config = make_config(
            settings.preset, vocabulary=vocabulary, context=settings.context, layers=settings.layers, dim=settings.dim,
            heads=settings.heads, kv_heads=settings.kv_heads, head_dim=settings.head_dim, hidden=settings.hidden,
            activation=settings.activation, qk_norm=settings.qk_norm, tied=settings.tied,
            rope_theta=settings.rope_theta, **_dropouts(settings),
        )  # fmt: skip
        if related and config.segments:
            config = replace(config, pooler=True, relation=True)
        hugging_face.family(config)  # what could not be written at the end is refused at the start
        return config
    except ValueError as error:
        raise RecipeError(f"'model': {error}") from None


def build_model(recipe: Recipe, vocabulary: int, device: torch.device) -> Transformer:
    """Random weights from the recipe's seed, or those of `model.init_from`, if that has all words of the corpus."""
    settings = recipe.model
    if settings.adapter and not settings.init_from:
        raise RecipeError("'model.adapter' changes a model: give its folder as 'model.init_from'")
    if settings.init_from:
        model = read_model(settings).to(device)
        if model.config.vocabulary < vocabulary:
            folder = find_model_directory(Path(settings.init_from))
            raise InputError(
                f"{recipe.corpus_directory} has a vocabulary of {vocabulary}, the model only {model.config.vocabulary}; "
                f"prepare the corpus with the model's tokenizer: --tokenizer.path {folder}"
            )
        _check_tokenizer(recipe)
        return model
    config = make_transformer_config(settings, vocabulary, related=recipe.masked.relation != "none")
    model = Transformer(config).materialise()
    random = generator(recipe.seed, "weights")
    model.initialise(random, settings.init_std or 0.02, settings.embedding_std, bool(settings.zero_init))
    return model.to(device)


def _check_tokenizer(recipe: Recipe) -> None:
    """Weights know tokens by number: the corpus must have those that they were trained on. Folders may have no tokenizer."""
    folder = find_model_directory(Path(recipe.model.init_from))
    corpus = Corpus.open(Path(recipe.corpus_directories[0]))
    if not (folder / "tokenizer.json").exists():
        return
    differing = difference(read_tokenizer(folder), read_tokenizer(corpus.tokenizer_path))
    if differing:
        raise InputError(
            f"{corpus.directory} was prepared with another tokenizer than {folder} was trained with: {differing}; "
            f"prepare it anew, in another folder, with --tokenizer.path {folder}"
        )


def read_model(settings: schema.Model, changed: bool = True) -> Transformer:
    """The model of the folder `model.init_from`; `InputError` says what is wrong with it.

    Where it has an adapter, with that; unless it is to be `changed`, with the adapter's whole modules alone.
    """
    free = {"preset", "init_from", "adapter", "trust_remote_code", *dropout.NAMES}
    given = [key for key, value in vars(settings).items() if value is not None and key not in free and key[0] != "_"]
    if given:
        raise RecipeError(f"'model.{given[0]}' can't be set beside 'model.init_from': the folder's shape holds")
    folder = find_model_directory(Path(settings.init_from))
    if foreign.is_foreign(folder):
        if read_adapter(settings):
            raise InputError(f"{folder}: a model that Shoal has no code of its own for, and that no adapter can change here")
        return foreign.read_foreign(folder, settings.trust_remote_code)
    try:
        config, weights = read_model_directory(folder)
        if adapter := read_adapter(settings):
            config, weights = merged(config, weights, adapter, changed)
        return hugging_face.build(config, weights, **_dropouts(settings))
    except ValueError as error:
        raise InputError(f"{settings.init_from}: {error}") from None


def read_adapter(settings: schema.Model) -> Adapter | None:
    """The adapter `model.adapter`, or the one that `model.init_from` is; `InputError` says what is wrong with it."""
    folder = Path(settings.adapter) if settings.adapter else adapter_of(Path(settings.init_from))
    if folder is None:
        return None
    if settings.adapter and adapter_of(Path(settings.init_from)) is not None:
        raise RecipeError("'model.init_from' is an adapter itself: give its model's folder there, beside 'model.adapter'")
    try:
        return Adapter.parse(*read_adapter_directory(folder))
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None


def _dropouts(settings: schema.Model) -> dict[str, float | None]:
    return {name: getattr(settings, name) for name in dropout.NAMES}
