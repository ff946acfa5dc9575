"""What varies a run's training texts, from its recipe; and texts that models make of them beforehand.

Ranks share that work, and all get the whole of it: so what a sample is read as doesn't depend on the rank that reads it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from shoal.core.errors import InputError, RecipeError
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe
from shoal.core.seeds import derive_seed
from shoal.data.examples.augment import WORDS, Augmentation
from shoal.data.examples.example import Example
from shoal.data.examples.wordnet import find_wordnet, read_synonyms
from shoal.data.tokenizer import TextTokenizer, read_tokenizer
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import LabelledTask
from shoal.train.back_translation import back_translated, check_translators
from shoal.train.models import read_model

LIKELIEST = 10
"""Among so many words one is drawn for a masked word, by their probabilities."""


WAYS = ("deletion", "swap", "synonyms", "characters", "masked", "translate_there", "translate_back")
"""Keys of which each varies texts in a way of its own; the last two do it together."""


def check_augmentation(recipe: Recipe, task: LabelledTask) -> None:
    """`InputError` for variations that can't be had, before anything is made."""
    settings = recipe.augment
    asked = [way for way in WAYS if getattr(settings, way)]
    if settings.mixup and recipe.task != "classify":
        raise RecipeError(f"'augment.mixup' is for task 'classify', and this is '{recipe.task}'")
    if not settings.share:
        if asked:
            raise RecipeError(f"'augment.{asked[0]}' is set, and 'augment.share' is 0: say how often texts are varied")
        return
    if not asked:
        raise RecipeError(f"'augment.share' is {settings.share:g}, and no way is: set one of augment.{', '.join(WAYS)}")
    if not task.varied:
        raise RecipeError(f"'augment' varies texts, and with task '{recipe.task}' their labels would no longer be right")
    if bool(settings.translate_there) != bool(settings.translate_back):
        missing = "translate_back" if settings.translate_there else "translate_there"
        raise RecipeError(f"'augment.{missing}' is missing: texts that are translated there must come back")
    if settings.translate_there:
        check_translators(recipe)
    if settings.synonyms:
        find_wordnet()
    if settings.masked and not (settings.masked_model or recipe.model.init_from):
        raise RecipeError("'augment.masked' needs a model that has learnt words: name one as 'augment.masked_model'")


def make_augmentation(
    recipe: Recipe,
    world: World,
    task: LabelledTask,
    base: Transformer,
    tokenizer: TextTokenizer,
    examples: Sequence[Example],
) -> tuple[Augmentation | None, list[str]]:
    """(the recipe's, which was checked, or None where it varies nothing; what is to be told)."""
    settings = recipe.augment
    if not settings.share:
        return None, []
    found = (example.values.get(role) for example in examples for role in task.varied)
    texts = sorted({text for text in found if isinstance(text, str)})
    others: dict[str, list[str]] = {}
    told: list[str] = []
    if settings.masked:
        others = _masked_texts(recipe, world, base, tokenizer, texts)
    if settings.translate_there:
        translated, said = back_translated(recipe, world, texts)
        others = {text: [*others.get(text, ()), *translated[text]] for text in texts}
        told.append(said)
    return Augmentation(settings, read_synonyms(find_wordnet()) if settings.synonyms else None, others), told


def _masked_texts(
    recipe: Recipe, world: World, base: Transformer, tokenizer: TextTokenizer, texts: Sequence[str]
) -> dict[str, list[str]]:
    """For each text `augment.variants` others, in which a share of the words is what a model finds behind a mask."""
    settings = recipe.augment
    model = base
    if settings.masked_model:
        model = read_model(build_recipe({"model": {"init_from": settings.masked_model}}).model)
        tokenizer = read_tokenizer(find_model_directory(Path(settings.masked_model)))
    if model.config.causal or model.transform is None:
        raise InputError(
            f"{settings.masked_model or recipe.model.init_from}: has no head for masked words; name a folder of one "
            "that has as 'augment.masked_model', e.g. one that shoal pretrain --task masked made"
        )
    filler = Filler(model.to(world.device).eval(), tokenizer, settings.masked)
    mine = {
        text: filler.others(text, settings.variants, derive_seed(recipe.seed, "masked text", number))
        for number, text in enumerate(texts)
        if number % world.size == world.rank
    }
    return {text: others for part in Wire(world).gather_objects(mine) for text, others in part.items()}


class Filler:
    """Puts other words in a share of a text's places, by a model for masked words."""

    def __init__(self, model: Transformer, tokenizer: TextTokenizer, share: float) -> None:
        self.model, self.tokenizer, self.share = model, tokenizer, share
        written = tokenizer.library.get_vocab(with_added_tokens=False)
        self.usable = torch.zeros(model.config.vocabulary, dtype=torch.bool)
        whole = [number for token, number in written.items() if not token.startswith("##")]
        self.usable[[number for number in whole if tokenizer.decode([number]).strip(" ").isalpha()]] = True

    @torch.no_grad()
    def others(self, text: str, count: int, seed: int) -> list[str]:
        """Other texts; the text itself where it has no words, or is longer than the model reads."""
        random = np.random.default_rng(seed)
        parts = WORDS.findall(text)
        places = [place for place, part in enumerate(parts) if part[0].isalnum()]
        masked = [[place for place in places if random.random() < self.share] for _ in range(count)]
        return [self._filled(parts, chosen, random) if chosen else text for chosen in masked]

    def _filled(self, parts: Sequence[str], chosen: Sequence[int], random: np.random.Generator) -> str:
        mask = self.tokenizer.special("mask")
        ids = [self.tokenizer.special("begin")]
        begin = 0
        for place in chosen:
            before = "".join(parts[begin:place])
            ids += [*self.tokenizer.encode(before).tolist(), mask]
            begin = place + 1
        ids += [*self.tokenizer.encode("".join(parts[begin:])).tolist(), self.tokenizer.end_of_text]
        if len(ids) > self.model.config.context:
            return "".join(parts)
        tokens = torch.tensor([ids], device=self.model.head_weight.device)
        logits = self.model.project(self.model(tokens))[0, tokens[0] == mask].float().cpu()
        logits[:, ~self.usable] = -torch.inf
        found = list(parts)
        for place, row in zip(chosen, logits, strict=True):
            values, best = row.topk(LIKELIEST)
            chances = values.double().softmax(0).numpy()
            drawn = random.choice(best.numpy(), p=chances / chances.sum())
            found[place] = self.tokenizer.decode([int(drawn)]).strip(" ")
        return "".join(found)
