"""Every limit of the quality rules, and where a language has limits of its own.

A rule's name says what is measured and on which side of the limit a document is kept: `words_least`, `digits_most`.
Sources: Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A1; C4: Raffel et al. 2020, JMLR 21; FineWeb: Penedo et al.
2024, arXiv:2406.17557; each where its rules are, in `gopher.py`, `repetition.py`, `c4.py`, `fineweb.py`.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from shoal.core.errors import RecipeError
from shoal.data.cleaning.draft import Dropped


@dataclass(frozen=True)
class Thresholds:
    """Limits for one language; shares are of 1."""

    words_least: float = 50
    words_most: float = 100_000
    word_length_least: float = 3
    word_length_most: float = 10
    hashes_most: float = 0.1
    ellipses_most: float = 0.1
    bullet_lines_most: float = 0.9
    ellipsis_lines_most: float = 0.3
    alphabetic_words_least: float = 0.8
    stop_words_least: float = 2
    digits_most: float = 0.2

    repeated_lines_most: float = 0.3
    repeated_paragraphs_most: float = 0.3
    repeated_line_characters_most: float = 0.2
    repeated_paragraph_characters_most: float = 0.2
    top_2gram_most: float = 0.20
    top_3gram_most: float = 0.18
    top_4gram_most: float = 0.16
    repeated_5gram_most: float = 0.15
    repeated_6gram_most: float = 0.14
    repeated_7gram_most: float = 0.13
    repeated_8gram_most: float = 0.12
    repeated_9gram_most: float = 0.11
    repeated_10gram_most: float = 0.10

    sentences_least: float = 5
    line_words_least: float = 3
    word_characters_most: float = 1000

    punctuated_lines_least: float = 0.12
    short_lines_most: float = 0.67
    short_line_characters: float = 30
    line_duplicates_most: float = 0.1
    newlines_most: float = 0.3


STOP_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(["the", "be", "to", "of", "and", "that", "have", "with"]),
    "de": frozenset(["der", "die", "und", "das", "in", "den", "von", "zu", "mit", "ist"]),
    "fr": frozenset(["de", "la", "le", "et", "les", "des", "en", "un", "que", "est"]),
    "es": frozenset(["de", "la", "que", "el", "en", "y", "los", "se", "un", "por"]),
    "zh": frozenset("的是了在和有不这我"),
    "ja": frozenset("のにはをがとでもたて"),
}
"""Gopher's for English; for others the commonest of the language. A language without them is not asked for any."""

# 50 words are 75 characters, a line of 30 letters says what 15 characters do, and length of words means nothing.
_CHARACTERS = {
    "words_least": 75,
    "words_most": 150_000,
    "word_length_least": 0,
    "word_length_most": math.inf,
    "line_words_least": 5,
    "short_line_characters": 15,
    "newlines_most": 0.2,
}

_LANGUAGES: dict[str, dict[str, float]] = {"zh": _CHARACTERS, "ja": _CHARACTERS}


class LimitsByLanguage(dict[str, Thresholds]):
    """The limits of each language; those of any other under ""."""

    def __missing__(self, language: str) -> Thresholds:
        limits = replace(self[""], **({} if language in STOP_WORDS else {"stop_words_least": 0}))
        self[language] = limits
        return limits


def resolve_thresholds(changes: Mapping[str, Any]) -> LimitsByLanguage:
    """Defaults with a recipe's changes: `{rule: limit}` for all languages, `{language: {rule: limit}}` for one.

    Raises `RecipeError` for a rule that there is not.
    """
    common = {key: value for key, value in changes.items() if not isinstance(value, Mapping)}
    own = {key: value for key, value in changes.items() if isinstance(value, Mapping)}
    for rules in (common, *own.values()):
        _check(rules)
    limits = LimitsByLanguage({"": Thresholds(**common)})
    for language in {*_LANGUAGES, *own}:
        defaults = {rule: limit for rule, limit in _LANGUAGES.get(language, {}).items() if rule not in common}
        limits[language] = replace(limits[language], **(defaults | dict(own.get(language, {}))))
    return limits


def _check(rules: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Thresholds)]
    for name in rules:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; the nearest is '{near[0]}'" if near else ""
            raise RecipeError(f"data.clean.thresholds: there is no rule '{name}'{hint}. The rules: {', '.join(known)}")


def first_broken(measures: Iterable[tuple[str, float]], limits: Thresholds) -> Dropped | None:
    """The first rule that a document breaks; `measures` are (rule, what was measured), measured one by one."""
    for rule, value in measures:
        limit = getattr(limits, rule)
        if value < limit if rule.endswith("_least") else value > limit:
            return Dropped(rule, f"{value:.3g} (limit {limit:g})")
    return None
