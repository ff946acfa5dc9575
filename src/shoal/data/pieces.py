"""Documents, cut to fit into rows, and laid there.

A document longer than a row is cut into full rows and a rest: only rests, and whole documents that are shorter than a row,
need packing or padding. What is counted here are *units*, the tokens that a piece brings into a row by itself:

    shifted    a document's tokens and its end-of-text, each once as a target; the input before the first is `begin`
    whole      a document's tokens; `begin`, `end` and the task's `spare` take further positions of each piece

So a piece is (document, first unit, number of units), and takes `units + extra` positions. Nothing is stored for full
pieces, and 20 bytes a document for the rest: ten million documents take 200 MB on each rank.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import CorpusError, RecipeError
from shoal.data.partition import Positions
from shoal.data.rows import hash_of
from shoal.data.sequences import Framing, Sequences
from shoal.data.shards import TokenStream

BEGINNING = 1 << 16
"""Tokens of a split in which a document is looked for before all of it is read: ten billion take half a minute."""


class Pieces(NamedTuple):
    """Pieces of documents: where in the stream each starts, its units, and whether its document begins there."""

    starts: Positions
    units: Positions
    first: NDArray[np.bool_]


@dataclass(frozen=True)
class CutDocuments:
    """A split's documents, cut into pieces that fit into `context` positions; empty documents are left out.

    `starts` [documents]: where each begins in the stream; `rests` [documents]: units of its last piece, 0 where only full
    ones are; `full_before` [documents + 1]: how many full pieces those before it have.
    """

    stream: TokenStream
    context: int
    end_of_text: int
    framing: Framing
    starts: Positions
    rests: NDArray[np.int32]
    full_before: Positions

    @classmethod
    def of(cls, stream: TokenStream, end_of_text: int, context: int, framing: Framing) -> "CutDocuments":
        """Find a split's documents, by the end-of-text that follows each, and cut them.

        Raises `RecipeError` when a row has no room for text, `CorpusError` when there is no document.
        """
        room = context - extra_positions(framing)
        if room < 1:
            raise RecipeError(
                f"'model.context' is {context}, and the task needs {context - room} positions of a row for itself: "
                "no text would fit"
            )
        ends = stream.find(end_of_text)
        if not len(ends) or ends[-1] != stream.tokens - 1:
            ends = np.append(ends, stream.tokens)  # nothing ends the last one but the stream
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1] + 1])
        units = ends - starts
        holds = units > 0
        starts, units = starts[holds], units[holds]
        if not len(starts):
            raise CorpusError("the split has no documents")
        if framing.kind == "shifted":
            units += ends[holds] < stream.tokens
        full_before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(units // room)])
        return cls(stream, context, end_of_text, framing, starts, (units % room).astype(np.int32), full_before)

    @property
    def room(self) -> int:
        """Units of a piece, at most."""
        return self.context - extra_positions(self.framing)

    @property
    def full(self) -> int:
        """How many pieces fill a row."""
        return int(self.full_before[-1])

    @cached_property
    def targets(self) -> int:
        """Units of all documents."""
        return self.full * self.room + int(self.rests.sum(dtype=np.int64))

    @cached_property
    def tokens(self) -> int:
        """Positions that all pieces fill, `begin` and `end` among them."""
        pieces = self.full + int(np.count_nonzero(self.rests))
        return self.targets + pieces * (extra_positions(self.framing) - self.framing.spare)

    @cached_property
    def fingerprint(self) -> str:
        """Of the text and of how it is cut."""
        return hash_of(self.stream.fingerprint, self.end_of_text, self.context, self.framing)

    def full_pieces(self, numbers: Positions) -> Pieces:
        """Some of the pieces that fill a row, numbered through all documents."""
        documents = np.searchsorted(self.full_before, numbers, side="right") - 1
        before = numbers - self.full_before[documents]
        starts = self.starts[documents] + before * self.room
        return Pieces(starts, np.full(len(numbers), self.room, dtype=np.int64), before == 0)

    def rest_pieces(self, documents: Positions) -> Pieces:
        """The last pieces of some documents."""
        before = self.full_before[documents + 1] - self.full_before[documents]
        return Pieces(self.starts[documents] + before * self.room, self.rests[documents].astype(np.int64), before == 0)

    def lay(self, pieces: Pieces, rows: Positions, keys: NDArray[np.uint64], length: int) -> Sequences:
        """Rows [len(keys), length] of pieces, which come in the order of their `rows`, one behind the other."""
        whole = self.framing.kind == "whole"
        filled = pieces.units + 2 * whole
        ends = np.cumsum(filled)
        begins = ends - filled
        is_first = np.ones(len(rows), dtype=bool)
        is_first[1:] = rows[1:] != rows[:-1]
        number = np.arange(len(rows))
        first_of_row = np.maximum.accumulate(np.where(is_first, number, 0))
        columns = begins - begins[first_of_row]

        tokens = np.full((len(keys), length), -1, dtype=np.int64)
        following, documents = tokens.copy(), tokens.astype(np.int32)
        within = np.arange(filled.sum()) - np.repeat(begins, filled)  # of each position, its place in its piece
        place = np.repeat(rows * length + columns, filled) + within
        documents.reshape(-1)[place] = np.repeat(number - first_of_row, filled)
        source = (
            np.repeat(pieces.starts, filled) + within - 1
        )  # the token before in `shifted`, `begin` stands before in `whole`
        begin, end = (self.end_of_text if token is None else token for token in (self.framing.begin, self.framing.end))
        at_begin = (within == 0) & (whole | np.repeat(pieces.first, filled))
        at_end = whole & (within == np.repeat(filled, filled) - 1)
        text = self.stream.take(np.where(at_begin | at_end, 0, source))
        tokens.reshape(-1)[place] = np.where(at_begin, begin, np.where(at_end, end, text))
        if not whole:
            following.reshape(-1)[place] = self.stream.take(source + 1)
        return Sequences(tokens, following, keys, documents)


def interleaved(chosen: NDArray[np.bool_], those: Pieces, others: Pieces) -> Pieces:
    """As many pieces as `chosen` is long: where it holds, the next of `those`, elsewhere the next of `others`."""

    def column(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        merged = np.empty(len(chosen), dtype=one.dtype)
        merged[chosen], merged[~chosen] = one, other
        return merged

    return Pieces(column(those.starts, others.starts), column(those.units, others.units), column(those.first, others.first))


def extra_positions(framing: Framing) -> int:
    """Positions that a piece takes beside its units."""
    return 2 + framing.spare if framing.kind == "whole" else 0


def holds_document(stream: TokenStream, end_of_text: int, least: int) -> bool:
    """Whether a split has a document of so many tokens; where one is near its beginning, the rest is not looked through."""
    head = stream.windows(np.zeros(1, dtype=np.int64), min(stream.tokens, BEGINNING))[0]
    return (
        _longest(np.flatnonzero(head == end_of_text), len(head)) >= least or longest_document(stream, end_of_text) >= least
    )


def longest_document(stream: TokenStream, end_of_text: int) -> int:
    """Tokens of a split's longest document, without the end-of-text that follows it."""
    return _longest(stream.find(end_of_text), stream.tokens)


def _longest(ends: Positions, tokens: int) -> int:
    return int(np.diff(np.concatenate(([-1], ends, [tokens]))).max()) - 1
