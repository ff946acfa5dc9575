"""Blanks that are filled: the same as the plain way, with what is nearest where not all can be read."""

from dataclasses import replace

import pytest
import torch

from shoal.core.errors import InputError
from shoal.core.seeds import generator
from shoal.data.special_tokens import FILL_IN, SENTINELS
from shoal.models.reach import Reach
from shoal.serve.filling import Layout, fill_in, fill_masks, lay_out
from shoal.serve.generation import LanguageModel, generate
from shoal.serve.samples import make_samples, shown
from shoal.serve.sampling import Sampling, draw
from tests.models.shapes import BERT, GPT2, QWEN3, random_model
from tests.tasks.texts import tokenizer

TOKENS = tokenizer()
GREEDY = Sampling(0)
SPECIAL = {*TOKENS.special_tokens.values()}
LAYOUTS: tuple[Layout, ...] = ("prefix first", "suffix first", "spans")


def language(config: object = GPT2, context: int = 64) -> LanguageModel:
    shape = replace(config, vocabulary=TOKENS.vocabulary + 7, context=context)  # type: ignore[type-var]
    return LanguageModel(random_model(shape), TOKENS)


def test_guesses_are_the_likeliest_words_at_each_mask() -> None:
    bert = language(BERT)
    found = fill_masks(bert, "the [MASK] swims with one [MASK].", top=4)
    assert [len(guesses) for guesses in found] == [4, 4]
    mask, end = TOKENS.special("mask"), TOKENS.end_of_text
    parts = [TOKENS.encode(part).tolist() for part in ("the", " swims with one", ".")]
    ids = [end, *parts[0], mask, *parts[1], mask, *parts[2], end]
    with torch.no_grad():
        logits = bert.model.project(bert.model(torch.tensor([ids])))[0]
    for guesses, place in zip(found, (1 + len(parts[0]), 2 + len(parts[0]) + len(parts[1])), strict=True):
        ordinary = logits[place].clone()
        ordinary[TOKENS.vocabulary :] = -torch.inf
        ordinary[list(SPECIAL)] = -torch.inf
        probabilities, best = ordinary.softmax(0).topk(4)
        assert [guess.word for guess in guesses] == [TOKENS.decode([token]).strip(" ") for token in best.tolist()]
        assert [guess.probability for guess in guesses] == pytest.approx(probabilities.tolist(), rel=1e-4)


def naive(language: LanguageModel, ids: list[int], prefix: int, tokens: int, sampling: Sampling, seed: int) -> list[int]:
    """The same without a cache."""
    random, said = generator(seed, "generate"), list[int]()
    for _ in range(tokens):
        window = torch.tensor([ids + said])
        with torch.no_grad():
            hidden = language.model(window, reach=Reach.of_prefix(torch.tensor([prefix]), window.shape[1]))
            [token] = draw(language.model.project(hidden[:, -1])[:, : TOKENS.vocabulary], [sampling], [random])
        if token in SPECIAL:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0)])
def test_what_is_filled_in_is_that_of_the_naive_way(layout: Layout, sampling: Sampling) -> None:
    for config in (GPT2, QWEN3):
        model = language(config)
        left, right = TOKENS.encode("the shoal").tolist(), TOKENS.encode(" one mind\n").tolist()
        ids, prefix = lay_out(model, left, right, layout)
        expected = naive(model, ids, prefix, 12, sampling, 3)
        text = fill_in(model, "the shoal ", " one mind\n", layout, 12, sampling, 3)
        assert text == TOKENS.decode(left + expected)[len("the shoal") :]


def test_both_sides_are_in_their_places() -> None:
    model = language()
    pre, suf, mid = (TOKENS.special(name) for name in FILL_IN)
    blank = TOKENS.special(SENTINELS[0])
    assert lay_out(model, [1, 2], [3], "prefix first") == ([pre, 1, 2, suf, 3, mid], 0)
    assert lay_out(model, [1, 2], [3], "suffix first") == ([pre, suf, 3, mid, 1, 2], 0)
    assert lay_out(model, [1, 2], [3], "spans") == ([1, 2, blank, 3, blank], 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_texts_beyond_the_context_what_is_nearest_to_the_blank_counts(layout: Layout) -> None:
    model = language(context=40)
    near = fill_in(model, "x" * 30 + "the fish reads", "swims in the sea" + "y" * 30, layout, 8, GREEDY)
    assert near == fill_in(model, "z" * 60 + "x" * 30 + "the fish reads", "swims in the sea" + "y" * 90, layout, 8, GREEDY)


def test_what_can_not_be_filled_is_told() -> None:
    with pytest.raises(InputError, match=r"has no \[MASK\]"):
        fill_masks(language(BERT), "the shoal")
    with pytest.raises(InputError, match="sees only what is before"):
        fill_masks(language(), "the [MASK]")
    with pytest.raises(InputError, match="tokens, the model's context is 24"):
        fill_masks(language(BERT, context=24), "[MASK]" + "the shoal swims " * 20)
    with pytest.raises(InputError, match="leave no room for the text around them"):
        fill_in(language(context=20), "a", "b", "spans", 20)
    with pytest.raises(InputError, match=r"give one with \[MASK\]"):
        next(generate(language(BERT), "the", 3))


def test_samples_are_of_the_models_kind() -> None:
    sample = make_samples(language(BERT), ["the [MASK]"], 5, GREEDY, 1)[0]
    assert sample["text"].startswith("\n    ") and sample["text"].count("%") == 5
    filled = make_samples(language(), ["the fish [MASK] sea", "the fish"], 5, GREEDY, 1, "prefix first")
    assert filled[0]["after"] == " sea" and filled[0]["prompt"].startswith("the fish")
    assert "after" not in filled[1]
    assert shown("\n") == r"'\n'" and shown("fish") == "fish"
