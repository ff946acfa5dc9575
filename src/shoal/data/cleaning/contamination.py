"""Decontamination: documents that share a long n-gram with a text that a model will be evaluated on are dropped.

13 words without case and punctuation (Brown et al. 2020, arXiv:2005.14165, appendix C), or 19 characters of Chinese or
Japanese. Evaluation texts shorter than that are looked for whole, from 8 words on; still shorter ones would be found
everywhere. Hashes have 64 bits: with a million n-grams, one document of 10^10 words is dropped wrongly by chance in 2,000.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from shoal.data.cleaning.draft import Draft, Dropped, Hashes, Stage, hash_ngrams

NGRAM = 13
SHORTEST = 8

Index = dict[int, Hashes]


def build_index(texts: Iterable[str]) -> Index:
    """Sorted hashes of all n-grams of the evaluation texts, by n."""
    found: defaultdict[int, list[Hashes]] = defaultdict(list)
    for text in texts:
        draft = Draft(text)
        units = draft.unit_hashes
        size = min(len(units), draft.span(NGRAM))
        if size >= draft.span(SHORTEST):
            found[size].append(hash_ngrams(units, size))
    return {size: np.unique(np.concatenate(hashes)) for size, hashes in sorted(found.items())}


def open_decontamination(index: Index) -> Stage:
    """Drop what shares an n-gram with the index."""

    def judge(draft: Draft) -> Draft | Dropped:
        for size, known in index.items():
            ngrams = hash_ngrams(draft.unit_hashes, size)
            places = np.searchsorted(known, ngrams)
            same = known[np.minimum(places, len(known) - 1)] == ngrams
            if same.any():
                start = int(same.argmax())
                shared = draft.units[start : start + size]
                return Dropped("evaluation_text", ("" if draft.spaceless else " ").join(shared))
        return draft

    return judge
