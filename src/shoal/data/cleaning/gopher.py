"""Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, appendix A1.1), and one on digits.

A document of prose has some length, words of ordinary length most of which have letters, few symbols, lines that are not
all list items, and at least two of the language's commonest words. `digits_most` is ours: tables and logs are not prose.
"""

import re
from collections.abc import Iterator

from shoal.data.cleaning.draft import Draft, Dropped, Stage, count_digits
from shoal.data.cleaning.thresholds import STOP_WORDS, LimitsByLanguage, first_broken

_LETTER = re.compile(r"[^\W\d_]")
_WORDLIKE = re.compile(r"\w")
_BULLETS = ("•", "-", "*", "‣", "·", "・", "●", "■", "◆")
_ELLIPSES = ("...", "…")


def open_gopher(limits: LimitsByLanguage) -> Stage:
    """Drop what breaks one of the rules."""

    def judge(draft: Draft) -> Draft | Dropped:
        return first_broken(_measures(draft), limits[draft.language]) or draft

    return judge


def _measures(draft: Draft) -> Iterator[tuple[str, float]]:
    text, words = draft.text, draft.words
    wordlike = [word for word in words if word.isalnum() or _WORDLIKE.search(word)]
    yield "words_least", len(wordlike)
    yield "words_most", len(wordlike)
    if not wordlike:
        return
    length = sum(map(len, wordlike)) / len(wordlike)
    yield "word_length_least", length
    yield "word_length_most", length
    yield "hashes_most", text.count("#") / len(words)
    yield "ellipses_most", sum(map(text.count, _ELLIPSES)) / len(words)
    lines = draft.lines
    yield "bullet_lines_most", sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    yield "ellipsis_lines_most", sum(line.endswith(_ELLIPSES) for line in lines) / len(lines)
    letters = sum(1 for word in words if word.isalpha() or _LETTER.search(word))
    yield "alphabetic_words_least", letters / len(words)
    yield "digits_most", count_digits(text) / len(text)
    yield "stop_words_least", len(STOP_WORDS.get(draft.language, frozenset()).intersection(words))
