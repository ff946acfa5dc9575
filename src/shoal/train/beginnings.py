"""What fine-tuning starts from: a model's folder with its tokenizer, or random weights and a tokenizer of their own.

A tokenizer that is trained on the examples is trained once, by the main rank, which keeps it in the run's folder for when
the run goes on. The other ranks get it by the wire, as they may not see that folder; workers of parameter servers find it
there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from shoal.core.errors import InputError
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.tokenizer import TextTokenizer, build_char, read_tokenizer, sample_texts
from shoal.data.tokenizer_choice import TRAINERS, for_task, given_tokenizer
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.train.models import build_model, read_model


@dataclass(frozen=True)
class Place:
    """Where a run's own tokenizer is kept, and the ranks that share it."""

    world: World
    run: RunDirectory


def beginning(recipe: Recipe, texts: Sequence[str], place: Place | None = None) -> tuple[Transformer, TextTokenizer]:
    """The model to start from, and its tokenizer, which may be trained on `texts`; `InputError` for what can't work.

    Without a `place`, a tokenizer that is trained is kept nowhere.
    """
    if recipe.model.init_from:
        model = read_model(recipe.model, changed=recipe.tuning.what != "lora")
        return model, read_tokenizer(find_model_directory(Path(recipe.model.init_from)))
    tokenizer = _own_tokenizer(recipe, None, texts) if place is None else _same_on_all_ranks(recipe, place, texts)
    return build_model(recipe, tokenizer.vocabulary, torch.device("cpu")), tokenizer


def _same_on_all_ranks(recipe: Recipe, place: Place, texts: Sequence[str]) -> TextTokenizer:
    made: tuple[str, TextTokenizer | None] = "", None
    if place.world.is_main:
        try:
            made = "", _own_tokenizer(recipe, place.run.tokenizer, texts)
        except InputError as error:  # the others wait
            made = str(error), None
    problem, tokenizer = Wire(place.world).gather_objects(_packed(*made))[0]
    if tokenizer is None:
        raise InputError(problem)
    library, end, config = tokenizer
    return TextTokenizer(Tokenizer.from_str(library), end, config)


def _packed(problem: str, tokenizer: TextTokenizer | None) -> tuple[str, tuple[str, str, dict[str, object]] | None]:
    return problem, None if tokenizer is None else (tokenizer.library.to_str(), tokenizer.end, tokenizer.config)


def _own_tokenizer(recipe: Recipe, folder: Path | None, texts: Sequence[str]) -> TextTokenizer:
    """The recipe's, with the special tokens that its task needs; trained, and kept in the folder, if need be."""
    choice = for_task(recipe.tokenizer, recipe.task)
    if choice.path:
        return given_tokenizer(choice)
    if folder is not None and (folder / "tokenizer_config.json").exists():  # written last
        return read_tokenizer(folder)
    if choice.kind == "char":
        tokenizer = build_char(set().union(*texts), choice.special)
    else:
        tokenizer = TRAINERS[choice.kind](sample_texts(texts, choice.sample_bytes), choice)
    if folder is not None:
        tokenizer.write(folder)
    return tokenizer
