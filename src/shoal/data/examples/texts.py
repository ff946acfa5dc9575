"""A text, or a pair of texts, as a model reads it: special tokens around, cut where it is too long."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.data.tokenizer import TextTokenizer


@dataclass
class Framed:
    """How many texts were framed, and how many of them were cut."""

    count: int = 0
    cut: int = 0


def frame_texts(
    tokenizer: TextTokenizer, texts: Sequence[str], length: int, framed: Framed
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tokens, segments) of one text or two: `[CLS] A [SEP] B [SEP]`, or, without such tokens, a text's end in their place.

    What is longer than `length` loses its end; of two texts, always the one that is longer then loses a token.
    """
    begin, end = tokenizer.special("begin"), tokenizer.end_of_text
    parts = [tokenizer.encode(text) for text in texts]
    room = length - len(parts) - (begin != end)
    framed.count += 1
    if sum(map(len, parts)) > room:
        framed.cut += 1
        parts = cut_longest(parts, room)
    tokens = [np.array([begin] if begin != end else [], dtype=np.int64)]
    segments = [np.zeros(len(tokens[0]), dtype=np.int64)]
    for number, part in enumerate(parts):
        tokens += [part, np.array([end], dtype=np.int64)]
        segments.append(np.full(len(part) + 1, number, dtype=np.int64))
    return np.concatenate(tokens), np.concatenate(segments)


def cut_longest(parts: Sequence[NDArray[np.int64]], room: int) -> list[NDArray[np.int64]]:
    """The beginnings of one or two parts, `room` tokens together; what is cut is cut of the longer one first."""
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    half = room // 2
    keep_first = room - len(second) if len(second) <= half else min(len(first), room - half)
    return [first[:keep_first], second[: room - keep_first]]
