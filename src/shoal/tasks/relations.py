"""Rows of two texts, and how they are related: BERT's next sentence, or ALBERT's sentence order.

    [begin] A [end] B [end]        segments 0 0 0 1 1

`order` (Lan et al. 2020, arXiv:1909.11942): A and B are two parts of one document, in order (0) or exchanged (1).
`next` (Devlin et al. 2019): B is what follows A (0), or text from anywhere in the split (1), which topic alone gives away;
of a mixture, in the row's own corpus, as the corpora's ways of writing would give it away sooner.
A row keeps the longest of its documents, cut in its middle half: rows of one document each (`data.rows: grouped`) lose
nothing by that. All of it depends on the row's key alone, also which text stands in for B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError
from shoal.data.draws import uniforms
from shoal.data.shards import TokenStream
from shoal.models.loss import IGNORED

LEAST = 8
"""Tokens below which a text is not cut in two."""

Row = NDArray[np.int64]


@dataclass(frozen=True)
class Relations:
    """Makes rows of two texts out of rows of documents; `streams` are where `next` finds other text, one a corpus."""

    kind: Literal["next", "order"]
    begin: int
    end: int
    special: NDArray[np.int64]
    streams: Sequence[TokenStream] = ()

    def __post_init__(self) -> None:
        if self.kind == "next" and not self.streams:
            raise InputError("masked.relation 'next' takes other text from a corpus, and there is none here; use 'order'")

    def rows(
        self,
        tokens: NDArray[np.int64],
        documents: NDArray[np.int32] | None,
        keys: NDArray[np.uint64],
        corpora: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(tokens, segments, relation of each row or `IGNORED`); padding is -1. `corpora`: which stream each row is of."""
        result, segments = np.full_like(tokens, -1), np.zeros_like(tokens)
        relations = np.full(len(tokens), IGNORED, dtype=np.int64)
        draws = uniforms(keys, "relation", 3)
        for row, (cut, other, place) in enumerate(draws):
            text = self._longest(tokens[row], None if documents is None else documents[row])[: tokens.shape[1] - 3]
            if len(text) < LEAST:
                continue
            middle = int(len(text) * (0.25 + 0.5 * cut))
            first, second, relations[row] = text[:middle], text[middle:], int(other < 0.5)
            if relations[row]:
                if self.kind == "order":
                    first, second = second, first
                else:
                    second = self._elsewhere(0 if corpora is None else int(corpora[row]), len(second), place)
            pieces = ([self.begin], first, [self.end], second, [self.end])
            whole = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
            result[row, : len(whole)] = whole
            segments[row, len(first) + 2 : len(whole)] = 1
        return result, segments, relations

    def _longest(self, tokens: Row, documents: NDArray[np.int32] | None) -> Row:
        """The text of a row's longest document."""
        real = tokens >= 0
        if documents is not None and real.any():
            numbers, sizes = np.unique(documents[real], return_counts=True)
            real &= documents == numbers[sizes.argmax()]
        return self._text(tokens[real])

    def _elsewhere(self, corpus: int, length: int, place: float) -> Row:
        stream = self.streams[corpus]
        length = min(length, stream.tokens)
        start = int(place * (stream.tokens - length + 1))
        return self._text(stream.windows(np.array([start]), length)[0])

    def _text(self, tokens: Row) -> Row:
        return tokens[~np.isin(tokens, self.special)]
