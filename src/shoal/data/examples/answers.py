"""Questions with the texts that answer them, and the windows in which a long text is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError
from shoal.data.examples.example import Example, Role

CONTEXT = Role("context", ("context", "passage", "paragraph"))
QUESTION = Role("question", ("question", "query"))
ANSWERS = Role("answers", ("answers", "answer"))
IDENTITY = Role("id", ("id", "question_id", "qid"), needed=False)
ROLES = (CONTEXT, QUESTION, ANSWERS, IDENTITY)


@dataclass(frozen=True)
class Right:
    """A right answer, and where it begins in the context, in characters."""

    text: str
    start: int


def read_answers(example: Example) -> list[Right]:
    """The right answers, none where the context has none; `InputError` for one that doesn't stand where it is said to."""
    context, named = example.text("context"), _named(example)
    found: list[Right] = []
    for text, start in _pairs(example.values.get("answers"), named):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{named}: an answer is {text!r:.40}, not text; a question without an answer has an empty list")
        if not isinstance(start, int) or start < 0:
            raise InputError(f"{named}: the answer '{_short(text)}' begins at {start!r:.40}, not at a number of a character")
        if context[start : start + len(text)] != text:
            raise InputError(
                f"{named}: the answer '{_short(text)}' is not in the context at {start}{_elsewhere(context, text)}"
            )
        found.append(Right(text, start))
    return found


def has_answer(example: Example) -> bool:
    """Whether an example gives an answer, right or wrong."""
    answers = example.values.get("answers")
    return bool(answers.get("text")) if isinstance(answers, Mapping) else bool(answers)


def tokens_of(answer: Right, places: NDArray[np.int64]) -> tuple[int, int]:
    """The first and the last token of an answer, given where each [tokens, 2] of the context begins and ends."""
    first = min(int(np.searchsorted(places[:, 1], answer.start, side="right")), len(places) - 1)
    last = int(np.searchsorted(places[:, 0], answer.start + len(answer.text), side="left")) - 1
    return first, max(first, last)


def window_starts(tokens: int, room: int, shared: int) -> list[int]:
    """Where the windows of `room` tokens begin in a context; neighbours share so many tokens, half of a window at most."""
    step = room - min(shared, room // 2)
    return list(range(0, max(tokens - room, 0) + step, step)) if tokens > room else [0]


def _pairs(answers: Any, named: str) -> list[tuple[Any, Any]]:
    """(text, place) of each answer: `datasets`' object of two lists, or SQuAD's list of objects."""
    if isinstance(answers, Mapping):
        texts, starts = (_listed(answers.get(name)) for name in ("text", "answer_start"))
        if len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
        raise InputError(f"{named}: {len(texts)} texts of answers and {len(starts)} places; every answer has both")
    if isinstance(answers, Sequence) and all(isinstance(answer, Mapping) for answer in answers):
        return [(answer.get("text"), answer.get("answer_start")) for answer in answers]
    raise InputError(
        f"{named}: the answers are {type(answers).__name__}, not {{text: […], answer_start: […]}} or a list of such objects"
    )


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _named(example: Example) -> str:
    """Where the example stands, with its question's name where that doesn't say it."""
    name = example.values.get("id")
    return (
        example.where if name is None or example.where.endswith(f"question {name}") else f"{example.where}: question {name}"
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _elsewhere(context: str, text: str) -> str:
    at = context.find(text)
    return f"; it is at {at}" if at >= 0 else ", nor anywhere in it"
