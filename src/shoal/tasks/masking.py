"""Which tokens of a row are masked, and what stands in their place: pure functions of the rows and their keys.

A row is cut into units: tokens, whole words, or spans of whole words. Units are chosen in a random order until the wanted
share of the row's tokens is reached, or a bit less: the last one goes beyond by half a unit on average. So the share is
right on average, off by little more than a unit in any row, and no length is favoured. That keeps the number of masked
tokens of a batch, hence the work, nearly constant, where throwing dice for each token would vary it by √(15% · 85% · N).

Spans (SpanBERT, Joshi et al. 2020, arXiv:1907.10529) have lengths drawn from a geometric distribution cut off at `longest`
words: the row is laid out in spans of such lengths from end to end, and whole ones are chosen. Their starts are as random as
in SpanBERT, which throws spans onto the row one by one until enough is covered; this is one vectorised pass.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.data.draws import uniforms

Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class Replacement:
    """What stands in place of a masked token: `mask` for a share, an `ordinary` token for another, else itself."""

    mask: int
    ordinary: NDArray[np.int64]
    masked: float = 0.8
    random: float = 0.1


def borders(tokens: NDArray[np.int64], eligible: Marks, documents: NDArray[np.int32] | None) -> Marks:
    """Where no unit may go on from the token before: [rows, length]."""
    result = np.ones(tokens.shape, dtype=bool)
    result[:, 1:] = ~eligible[:, :-1]
    if documents is not None:
        result[:, 1:] |= documents[:, 1:] != documents[:, :-1]
    return result


def span_begins(word_begins: Marks, border: Marks, keys: NDArray[np.uint64], probability: float, longest: int) -> Marks:
    """Where spans begin, of words that begin at `word_begins`; both [rows, length]."""
    rows, length = word_begins.shape
    lengths = np.arange(1, longest + 1)
    shares = probability * (1 - probability) ** (lengths - 1)
    cumulative = np.cumsum(shares / shares.sum())
    drawn = lengths[np.searchsorted(cumulative[:-1], uniforms(keys, "span length", length), side="right")]
    edges = np.cumsum(drawn, axis=1)
    is_edge = np.zeros((rows, length + 1), dtype=bool)
    is_edge[:, 0] = True
    np.put_along_axis(is_edge, np.minimum(edges, length), True, axis=1)
    word = np.maximum(np.cumsum(word_begins, axis=1) - 1, 0)
    return word_begins & (np.take_along_axis(is_edge, word, axis=1) | border)


def choose(begins: Marks, eligible: Marks, keys: NDArray[np.uint64], rate: float) -> tuple[Marks, NDArray[np.int64]]:
    """(which tokens are masked, each token's unit): units begin at `begins`, and only `eligible` tokens are of one."""
    rows, length = begins.shape
    unit = np.maximum(np.cumsum(begins, axis=1) - 1, 0)
    place = (np.arange(rows)[:, None] * length + unit)[eligible]
    sizes = np.bincount(place, minlength=rows * length).reshape(rows, length)
    budget = rate * eligible.sum(axis=1, keepdims=True)
    order = np.argsort(np.where(sizes > 0, uniforms(keys, "unit", length), 2.0), axis=1, kind="stable")
    ordered = np.take_along_axis(sizes, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    # where the budget ends lies a long unit more likely than a short one, and Σ size² / 2 Σ size of it, on average, beyond
    beyond = (sizes**2).sum(axis=1, keepdims=True) / np.maximum(sizes.sum(axis=1, keepdims=True), 1)
    taken = before < budget - uniforms(keys, "beyond", 1) * beyond
    chosen = np.zeros((rows, length), dtype=bool)
    np.put_along_axis(chosen, order, taken & (ordered > 0), axis=1)
    return np.take_along_axis(chosen, unit, axis=1) & eligible, unit


def replace_masked(
    tokens: NDArray[np.int64],
    masked: Marks,
    keys: NDArray[np.uint64],
    replacement: Replacement,
    unit: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """The rows with what stands in place of masked tokens; with `unit`, the same kind for all tokens of a unit."""
    length = tokens.shape[1]
    kind = uniforms(keys, "replacement", length)
    if unit is not None:
        kind = np.take_along_axis(kind, unit, axis=1)
    drawn = (uniforms(keys, "random token", length) * len(replacement.ordinary)).astype(np.int64)
    result = np.where(masked & (kind < replacement.masked), replacement.mask, tokens)
    other = masked & (kind >= replacement.masked) & (kind < replacement.masked + replacement.random)
    return np.where(other, replacement.ordinary[drawn], result)
