"""Gopher's rules against repetition (Rae et al. 2021, arXiv:2112.11446, table A1): lines, paragraphs, n-grams.

Shares are of the document's characters. For 2- to 4-grams it is the share of the commonest one, for 5- to 10-grams the
share of all characters that lie in an n-gram which stood there before, each character counted once. A repeated 6-gram is
made of repeated 5-grams, so that share never grows with n: most documents are settled by their 5-grams.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shoal.data.cleaning.draft import Draft, Dropped, Hashes, Stage, hash_ngrams, hash_words
from shoal.data.cleaning.thresholds import LimitsByLanguage, first_broken

TOP = (2, 3, 4)
REPEATED = (5, 6, 7, 8, 9, 10)


def open_repetition(limits: LimitsByLanguage) -> Stage:
    """Drop what repeats itself too much."""

    def judge(draft: Draft) -> Draft | Dropped:
        own = limits[draft.language]
        loosest = min(getattr(own, f"repeated_{size}gram_most") for size in REPEATED)
        return first_broken(_measures(draft, loosest), own) or draft

    return judge


def _measures(draft: Draft, least_limit: float) -> Iterator[tuple[str, float]]:
    text = draft.text
    paragraphs = [part for part in map(str.strip, text.split("\n\n")) if part]
    for name, parts in (("paragraph", paragraphs), ("line", draft.lines)):
        count, characters = repeats(parts)
        yield f"repeated_{name}s_most", count / max(1, len(parts))
        yield f"repeated_{name}_characters_most", characters / len(text)
    words = draft.words
    hashes = hash_words(words)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    gap = 0 if draft.spaceless else 1
    for size in TOP:
        yield f"top_{size}gram_most", top_ngram(hashes, lengths, draft.span(size), gap) / len(text)
    for size in REPEATED:
        share = repeated_characters(hashes, lengths, draft.span(size)) / len(text)
        yield f"repeated_{size}gram_most", share
        if share <= least_limit:
            return


def repeats(parts: list[str]) -> tuple[int, int]:
    """How many parts stood there before, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def top_ngram(hashes: Hashes, lengths: NDArray[np.int64], size: int, gap: int) -> int:
    """Characters in all places of the commonest n-gram, its `gap` characters between words included."""
    ngrams = hash_ngrams(hashes, size)
    if not len(ngrams):
        return 0
    unique, counts = np.unique(ngrams, return_counts=True)
    most = int(counts.max())
    place = int(np.isin(ngrams, unique[counts == most]).argmax()) if most > 1 else 0  # of equals, the first in the text
    return most * (int(lengths[place : place + size].sum()) + gap * (size - 1))


def repeated_characters(hashes: Hashes, lengths: NDArray[np.int64], size: int) -> int:
    """Characters of words that lie in an n-gram which stood there before."""
    ngrams = hash_ngrams(hashes, size)
    if not len(ngrams):
        return 0
    ordered = np.sort(ngrams)
    if (ordered[1:] != ordered[:-1]).all():
        return 0
    _, first = np.unique(ngrams, return_index=True)
    again = np.ones(len(ngrams), dtype=bool)
    again[first] = False
    starts = np.flatnonzero(again)
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + size, -1)
    return int(lengths[np.cumsum(edges[:-1]) > 0].sum())
