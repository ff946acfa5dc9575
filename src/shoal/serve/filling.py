"""Blanks in a text, filled: the likeliest words behind a mask, or a part that a decoder writes between two others.

In a prompt `[MASK]` stands for what is to be found, whatever the tokenizer's own mask token is called. A space before it is
taken to belong to the word that is looked for, as tokenizers write it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from shoal.core.errors import InputError, ShoalError
from shoal.core.files import read_json
from shoal.core.model_directory import find_model_directory
from shoal.data.special_tokens import FILL_IN, SENTINELS
from shoal.data.tokenizer import TextTokenizer
from shoal.serve.generation import LanguageModel
from shoal.serve.request import Piece, Request
from shoal.serve.runner import TorchRunner
from shoal.serve.sampling import Sampling
from shoal.serve.scheduler import Scheduler

BLANK = "[MASK]"

Layout = Literal["prefix first", "suffix first", "spans"]
"""How a decoder was trained to fill in; `config.json` says it under `infill_layout`."""


def read_layout(directory: Path) -> Layout | None:
    """How the decoder in a model's folder, or a run's, was trained to fill in; None: not at all."""
    layout = read_json(find_model_directory(directory) / "config.json").get("infill_layout")
    return layout if layout in get_args(Layout) else None


@dataclass(frozen=True)
class Guess:
    """A word, and how probable the model holds it."""

    word: str
    probability: float


@torch.inference_mode()
def fill_masks(language: LanguageModel, text: str, top: int = 5) -> list[list[Guess]]:
    """The likeliest words at each `[MASK]` of the text, best first; `InputError` where the model has no masks."""
    model, tokenizer = language.model, language.tokenizer
    if model.config.causal:
        raise InputError("this model sees only what is before a token; give it a prompt to go on with")
    ids = lay_out_masks(tokenizer, text, model.config.context)
    tokens = torch.tensor([ids], device=model.head_weight.device)
    logits = model.project(model(tokens))[0, tokens[0] == tokenizer.special("mask"), : tokenizer.vocabulary].float()
    logits[:, list(tokenizer.special_tokens.values())] = -torch.inf
    found = []
    for row in logits.softmax(-1):
        probabilities, best = row.topk(min(top, len(row)))
        pairs = zip(best.tolist(), probabilities.tolist(), strict=True)
        found.append([Guess(tokenizer.decode([token]).strip(" "), probability) for token, probability in pairs])
    return found


def lay_out_masks(tokenizer: TextTokenizer, text: str, context: int) -> list[int]:
    """The tokens of a text with masks at its blanks; `InputError` where it has none, or is longer than `context`."""
    mask = tokenizer.special("mask")
    parts = text.split(BLANK)
    if len(parts) < 2:
        raise InputError(f"{text!r} has no {BLANK}, which stands where a word is to be found")
    ids = [tokenizer.special("begin"), *encode_before_blank(tokenizer, parts[0])]
    for number, part in enumerate(parts[1:], 1):
        ids.append(mask)
        ids += encode_before_blank(tokenizer, part) if number < len(parts) - 1 else tokenizer.encode(part).tolist()
    ids.append(tokenizer.end_of_text)
    if len(ids) > context:
        raise InputError(f"the text has {len(ids)} tokens, the model's context is {context}")
    return ids


def fill_in(
    language: LanguageModel,
    before: str,
    after: str,
    layout: Layout,
    tokens: int = 80,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> str:
    """What the model writes between two texts, up to `tokens` tokens.

    Where both are longer than the context, those tokens of each that are nearest to the blank are read.
    """
    room = room_around(tokens, language.model.config.context)
    left, right = encode_before_blank(language.tokenizer, before), language.tokenizer.encode(after).tolist()
    right = right[: max(room // 2, room - len(left))]
    left = left[len(left) - min(len(left), room - len(right)) :]
    ids, prefix = lay_out(language, left, right, layout)
    request = Request(tuple(ids), tokens, sampling or Sampling(), seed)
    special = {*language.tokenizer.special_tokens.values(), *language.ends}
    scheduler = Scheduler(
        TorchRunner(language.model, 1, len(ids) + tokens, prefix), language.tokenizer, special, chunk=None
    )  # fmt: skip
    pieces: list[Piece] = []
    text = scheduler.prepare(request, pieces.append)
    scheduler.add(text)
    while scheduler.busy:
        scheduler.step()
    if text.finish == "failed":
        raise ShoalError(pieces[-1].text)
    # some tokenizers write a space only between tokens, so what is new is read with what was before it
    given = len(language.tokenizer.decode(left))
    return language.tokenizer.decode(left + text.tokens[len(ids) :])[given:]


def room_around(tokens: int, context: int) -> int:
    """How many tokens of the text around a blank are read, where up to `tokens` fill it; `InputError` for hardly any."""
    room = context - tokens - 4
    if room < 2:
        raise InputError(f"{tokens} tokens leave no room for the text around them in a context of {context}")
    return room


def lay_out(language: LanguageModel, left: list[int], right: list[int], layout: Layout) -> tuple[list[int], int]:
    """(tokens after which the blank's come, how many of the first see each other both ways)."""
    special = language.tokenizer.special
    if layout == "spans":
        blank = special(SENTINELS[0])
        return [*left, blank, *right, blank], len(left) + 1 + len(right)
    begin, hole, fill = (special(name) for name in FILL_IN)
    if layout == "suffix first":
        return [begin, hole, *right, fill, *left], 0
    return [begin, *left, hole, *right, fill], 0


def encode_before_blank(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Tokens of a text that a blank follows, without the space at its end where words are written with theirs."""
    written = tokenizer.library.get_vocab(with_added_tokens=False)
    with_space = any(len(token) > 1 and token[0] in "Ġ▁" for token in written)
    ids: list[int] = tokenizer.encode(text.removesuffix(" ") if with_space else text).tolist()
    return ids
