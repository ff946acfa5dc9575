"""A text, or a pair of texts, as a model reads it: special tokens around, cut where it is too long."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shoal.data.frames import says_frame, with_frame
from shoal.data.tokenizer import TextTokenizer


@dataclass
class Framed:
    """How many texts were framed, and how many of them were cut."""

    count: int = 0
    cut: int = 0


def framing_tokenizer(tokenizer: TextTokenizer, causal: bool) -> TextTokenizer:
    """The tokenizer with its model's way of framing texts in it, so that other programs frame them in the same way."""
    if says_frame(tokenizer.library):
        return tokenizer
    library = with_frame(tokenizer.library, tokenizer.special("begin"), tokenizer.end_of_text, causal)
    return replace(tokenizer, library=library, config={"pad_token": tokenizer.end} | tokenizer.config)


def frame_texts(
    tokenizer: TextTokenizer, texts: Sequence[str], length: int, framed: Framed
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tokens, segments) of one text or two, with the special tokens of the tokenizer's frame (`data.frames`).

    What is longer than `length` loses its end; of two texts, always the one that is longer then loses a token.
    """
    parts = [tokenizer.encode(text) for text in texts]
    room = length - frame_size(tokenizer, len(parts))
    framed.count += 1
    if sum(map(len, parts)) > room:
        framed.cut += 1
        parts = cut_longest(parts, room)
    return frame_parts(tokenizer, parts)


def frame_parts(tokenizer: TextTokenizer, parts: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tokens, segments) of one text or two that are tokens already, and fit."""
    frame = tokenizer.frames[len(parts)]
    tokens, segments = [frame.special[0]], [frame.segments[0]]
    for number, part in enumerate(parts):
        tokens += [part, frame.special[number + 1]]
        segments += [np.full(len(part), frame.kinds[number], dtype=np.int64), frame.segments[number + 1]]
    return np.concatenate(tokens), np.concatenate(segments)


def frame_size(tokenizer: TextTokenizer, parts: int) -> int:
    """How many special tokens stand around and between so many texts."""
    return tokenizer.frames[parts].size


def cut_longest(parts: Sequence[NDArray[np.int64]], room: int) -> list[NDArray[np.int64]]:
    """The beginnings of one or two parts, `room` tokens together; what is cut is cut of the longer one first."""
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    half = room // 2
    keep_first = room - len(second) if len(second) <= half else min(len(first), room - half)
    return [first[:keep_first], second[: room - keep_first]]
