"""Labelled texts, varied: words left out, swapped, misspelt, or replaced by others that mean the same.

Deletion, swap and synonyms are those of EDA (Wei and Zou 2019, arXiv:1901.11196). What is drawn depends on the seed, the
epoch and the sample alone, so a run is the same on any number of ranks and after any interruption.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.core.recipe import Augment
from shoal.data.examples.example import Example

WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]|\s+")
"""Words, signs, and the space between them: joined, they are the text."""

Random = np.random.Generator
Replace = Callable[[str, Random], str]
"""A word, and where numbers come from, to a word."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to a text: each way to the share of its words that the recipe says.

    `synonyms`: other words for one; `others`: further texts that mean the same, by the text, one of which may stand for it.
    """

    settings: Augment
    synonyms: Callable[[str], Sequence[str]] | None = None
    others: Mapping[str, Sequence[str]] | None = None

    def vary(self, example: Example, roles: Sequence[str], key: int) -> Example:
        """The example as it is read this time; unchanged in `1 - share` of all readings."""
        random = np.random.default_rng(key)
        if random.random() >= self.settings.share:
            return example
        texts = {role: example.values[role] for role in roles if isinstance(example.values.get(role), str)}
        varied = {role: self.varied(text, random) for role, text in texts.items()}
        return Example({**example.values, **varied}, example.where)

    def varied(self, text: str, random: Random) -> str:
        """Another text; never an empty one."""
        settings = self.settings
        if self.others and (others := self.others.get(text)):
            chosen = int(random.integers(len(others) + 1))
            text = text if chosen == len(others) else others[chosen]
        parts = WORDS.findall(text)
        if settings.synonyms and self.synonyms is not None:
            _replace(parts, settings.synonyms, random, lambda word, drawn: _one_of(self.synonyms, word, drawn))
        if settings.characters:
            _replace(parts, settings.characters, random, misspelt)
        if settings.swap:
            _swap(parts, settings.swap, random)
        if settings.deletion:
            _delete(parts, settings.deletion, random)
        return "".join(parts).strip() or text


def misspelt(word: str, random: Random) -> str:
    """The word with one character left out, doubled, or changed for the one beside it."""
    if len(word) < 3:
        return word
    place = int(random.integers(1, len(word) - 1))
    kind = int(random.integers(3))
    if kind == 0:
        return word[:place] + word[place + 1 :]
    if kind == 1:
        return word[:place] + word[place] + word[place:]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _one_of(synonyms: Callable[[str], Sequence[str]] | None, word: str, random: Random) -> str:
    found = synonyms(word) if synonyms is not None else ()
    return found[int(random.integers(len(found)))] if found else word


def _places(parts: Sequence[str]) -> list[int]:
    """Where words are; in scripts without spaces a word is what stands between two signs, too long to be one."""
    return [place for place, part in enumerate(parts) if part[0].isalnum()]


def _chosen(parts: Sequence[str], share: float, random: Random) -> list[int]:
    return [place for place in _places(parts) if random.random() < share]


def _replace(parts: list[str], share: float, random: Random, replace: Replace) -> None:
    for place in _chosen(parts, share, random):
        parts[place] = replace(parts[place], random)


def _swap(parts: list[str], share: float, random: Random) -> None:
    places = _places(parts)
    for place in _chosen(parts, share, random):
        other = places[int(random.integers(len(places)))]
        parts[place], parts[other] = parts[other], parts[place]


def _delete(parts: list[str], share: float, random: Random) -> None:
    chosen, places = _chosen(parts, share, random), _places(parts)
    if len(chosen) == len(places):  # one word stays
        chosen = chosen[1:]
    for place in reversed(chosen):
        # with the space before it, so that none is doubled
        first = place - 1 if place and parts[place - 1].isspace() else place
        del parts[first : place + 1]
