"""Texts with parts cut out, laid out so that a decoder fills them in: pure functions of token ids and a key.

Span corruption (T5, Raffel et al. 2020, arXiv:1910.10683; on a decoder with a prefix as in UL2, Tay et al. 2022,
arXiv:2205.05131): a share of the tokens is cut out in spans, each replaced by a sentinel; after the text that is left come
the sentinels again, each with its span. Sizes are T5's: as many tokens and spans as share and mean length say, laid out by
two random compositions, one of the spans and one of what stands around them. Unlike T5's, which always end with a span,
texts may begin and end with either.

    the <0> swims with <1> fish  |  <0> shoal <1> one mind and every <end>
    sees itself both ways        |  sees what is before

Fill in the middle (Bavarian et al. 2022, arXiv:2207.14255): a text is cut in three at two random places, and its middle
comes last; here at the level of tokens. Prefix first (PSM) or suffix first (SPM, their second form, which trains both):

    <pre> the shoal <suf> fish <mid> swims with one mind and every <end>
    <pre> <suf> fish <mid> the shoal swims with one mind and every <end>
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.data.draws import uniforms

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Rewritten:
    """A text as it is learnt: each of `tokens` but the last is read, and the one after it is its target.

    `filled` [tokens]: which tokens are what is filled in, the end included; `aside`: which others are targets too. The first
    `prefix` tokens see each other both ways.
    """

    tokens: Ids
    filled: NDArray[np.bool_]
    aside: NDArray[np.bool_]
    prefix: int = 0

    @classmethod
    def of(cls, pieces: list[tuple[Ids, bool, bool]], prefix: int = 0) -> "Rewritten":
        """From (tokens, filled, aside)."""
        lengths = [len(tokens) for tokens, _, _ in pieces]
        filled, aside = (np.repeat([piece[which] for piece in pieces], lengths) for which in (1, 2))
        return cls(np.concatenate([tokens for tokens, _, _ in pieces]), filled, aside, prefix)


@dataclass(frozen=True)
class Middle:
    """The special tokens of filling in the middle; `breaks` [vocabulary]: which tokens hold a line end, if lines are cut."""

    prefix: int
    suffix: int
    middle: int
    end: int
    breaks: NDArray[np.bool_] | None = None

    added = 3
    """How many more tokens are read than the text has."""

    def rewrite(self, ids: Ids, key: np.uint64, suffix_first: float) -> Rewritten:
        """Cut at two random places, or around a random line; suffix first with that probability."""
        one, other, form = uniforms(np.array([key]), "middle", 3)[0]
        low, high = self.line(ids, one) or sorted(int(draw * (len(ids) + 1)) for draw in (one, other))
        before, middle, after = ids[:low], ids[low:high], ids[high:]
        begin, hole, fill, end = (np.array([token]) for token in (self.prefix, self.suffix, self.middle, self.end))
        suffix_comes_first = form < suffix_first
        around = [begin, hole, after, fill, before] if suffix_comes_first else [begin, before, hole, after, fill]
        pieces = [(tokens, False, True) for tokens in around]
        return Rewritten.of([*pieces, (middle, True, False), (end, True, False)])

    def line(self, ids: Ids, draw: float) -> tuple[int, int] | None:
        """Where one of the lines begins and ends: the tokens between two that hold a line end. None where there are none."""
        if self.breaks is None:
            return None
        ends = np.flatnonzero(self.breaks[ids])
        begins, ends = np.append(0, ends + 1), np.append(ends, len(ids))
        lines = np.flatnonzero(begins < ends)
        if not len(lines):
            return None
        chosen = lines[int(draw * len(lines))]
        return int(begins[chosen]), int(ends[chosen])


@dataclass(frozen=True)
class Spans:
    """The sentinels of span corruption, in order, and the end."""

    sentinels: Ids
    end: int
    share: float
    mean: float

    def sizes(self, length: int) -> tuple[int, int]:
        """(tokens cut out of so many, in how many spans)."""
        cut = min(max(round(self.share * length), 1), length - 1)
        return cut, min(max(round(cut / self.mean), 1), cut, length - cut, len(self.sentinels))

    def fitting(self, length: int, room: int) -> int:
        """How many tokens of a text of `length` can be rewritten so that at most `room` are read; 0: none."""
        while length > 1 and length + 2 * self.sizes(length)[1] > room:
            length -= max(1, (length + 2 * self.sizes(length)[1] - room) // 2)
        return length if length > 1 else 0

    def rewrite(self, ids: Ids, key: np.uint64) -> Rewritten:
        """Cut spans out."""
        cut, spans = self.sizes(len(ids))
        keys, left = np.array([key]), len(ids) - cut
        lengths = composition(cut, spans, uniforms(keys, "spans", max(cut - 1, 1))[0])
        around = composition(left + 2, spans + 1, uniforms(keys, "around", left + 1)[0])
        around[[0, -1]] -= 1  # these two may be empty
        parts = np.split(ids, np.cumsum(np.stack((around[:-1], lengths), axis=1).ravel()))
        marks = [self.sentinels[number : number + 1] for number in range(spans)]
        text = [piece for kept, mark in zip(parts[::2], marks, strict=False) for piece in (kept, mark)]
        pieces = [(tokens, False, False) for tokens in (*text, parts[-1])]
        for number, (mark, span) in enumerate(zip(marks, parts[1::2], strict=True)):
            # the first sentinel is always the same one: nothing to learn
            pieces += [(mark, number > 0, False), (span, True, False)]
        prefix = len(ids) - cut + spans
        return Rewritten.of([*pieces, (np.array([self.end]), True, False)], prefix)


def composition(total: int, parts: int, draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """`total` as a sum of `parts` numbers above 0, all such sums equally likely; of `total - 1` draws."""
    dividers = np.sort(np.argsort(draws[: total - 1], kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], dividers, [total])))
