"""Entities as tags, one a word, in the schemes BIO, BIOES and IOB1, and back.

BIO (IOB2) marks the first word of an entity `B-TYPE` and the others `I-TYPE`; IOB1 only those first words that follow an
entity of the same type (Ramshaw and Marcus 1995); BIOES marks the last word `E-TYPE` too, and a single one `S-TYPE`. Words
of no entity are `O`. BMES and BILOU are BIOES under other letters.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError

Scheme = Literal["bio", "bioes", "iob1"]

MARKS: dict[str, str] = {"bio": "BI", "iob1": "BI", "bioes": "BIES"}
ALIASES = {"M": "I", "L": "E", "U": "S"}
OUTSIDE = "O"


class Entity(NamedTuple):
    """A type, the number of its first word, and that of the word behind its last."""

    kind: str
    first: int
    end: int


def scheme_of(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that tags are in: BIOES where they end entities; IOB1 where there are some, and none begins with a B.

    All else is BIO, of which `read_tags` says where it is broken.
    """
    marked = unmarked = 0
    for tags in sentences:
        before = ("", "")
        for tag in tags:
            mark, kind = _parts(tag)
            if mark in ("E", "S"):
                return "bioes"
            if before != ("B", kind) and before != ("I", kind):
                marked += mark == "B"
                unmarked += mark == "I"
            before = mark, kind
    return "iob1" if unmarked and not marked else "bio"


def read_tags(tags: Sequence[str], scheme: Scheme, where: Callable[[int], str]) -> list[Entity]:
    """The entities that tags tell; `InputError` names the place (`where` a word stands, by its number) of a wrong one."""
    found: list[Entity] = []
    begun: tuple[str, int] | None = None
    for number, tag in enumerate([*tags, OUTSIDE]):
        mark, kind = _parts(tag)
        if tag != OUTSIDE and (not mark or mark not in MARKS[scheme]):
            known = ", ".join(f"{letter}-TYPE" for letter in MARKS[scheme])
            raise InputError(f"{where(number)}: '{tag}' is no tag of {scheme.upper()}, which has {OUTSIDE}, {known}")
        goes_on = begun is not None and begun[0] == kind and mark in ("I", "E")
        if begun is not None and not goes_on:
            if scheme == "bioes":
                raise InputError(_unended(tags, number, begun, where))
            found.append(Entity(*begun, number))
            begun = None
        if mark in ("I", "E") and not goes_on and scheme != "iob1":
            raise InputError(_unbegun(tags, number, scheme, where))
        if mark in ("B", "S") or (mark == "I" and not goes_on):
            begun = kind, number
        if mark in ("E", "S") and begun is not None:
            found.append(Entity(*begun, number + 1))
            begun = None
    return found


def write_tags(entities: Iterable[Entity], words: int, scheme: Scheme) -> list[str]:
    """The tags of so many words, in BIO or BIOES."""
    tags = [OUTSIDE] * words
    for kind, first, end in entities:
        tags[first:end] = [f"I-{kind}"] * (end - first)
        tags[first] = f"B-{kind}"
        if scheme == "bioes":
            tags[end - 1] = f"{'S' if end - first == 1 else 'E'}-{kind}"
    return tags


def labels_of(kinds: Sequence[str], scheme: Scheme) -> list[str]:
    """All tags of a scheme, in the order of their numbers."""
    return [OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in MARKS[scheme])]


def kinds_in(tags: Iterable[str]) -> set[str]:
    """The types that tags name."""
    return {kind for mark, kind in map(_parts, tags) if mark}


def followers(labels: Sequence[str]) -> NDArray[np.bool_]:
    """[labels, labels]: whether the second may follow the first, in BIO or BIOES. A sentence lies between two `O`s."""
    parts = [_parts(label) for label in labels]
    ended = any(mark in ("E", "S") for mark, _ in parts)

    def follows(before: tuple[str, str], mark: str, kind: str) -> bool:
        if mark in ("I", "E"):
            return before[0] in ("B", "I") and before[1] == kind
        return not (ended and before[0] in ("B", "I"))

    return np.array([[follows(before, *after) for after in parts] for before in parts])


def best_labels(scores: NDArray[Any], allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The sequence [words] with the largest sum of scores [words, labels] of those that `followers` allows.

    Where each word's best label makes an allowed sequence, that is it; else Viterbi's algorithm finds it.
    """
    best = scores.argmax(1)
    if allowed[np.concatenate(([0], best)), np.concatenate((best, [0]))].all():
        return best
    barred = np.where(allowed, 0.0, -np.inf)
    total = scores[0] + barred[0]
    came = np.zeros(scores.shape, dtype=np.int64)
    for word in range(1, len(scores)):
        ways = total[:, None] + barred
        came[word] = ways.argmax(0)
        total = ways.max(0) + scores[word]
    path = [int((total + barred[:, 0]).argmax())]
    for word in range(len(scores) - 1, 0, -1):
        path.append(int(came[word, path[-1]]))
    return np.array(path[::-1], dtype=np.int64)


def _parts(tag: str) -> tuple[str, str]:
    """(mark, type); no mark where it is no tag of an entity."""
    mark, dash, kind = tag.partition("-")
    return (ALIASES.get(mark, mark), kind) if dash and kind and len(mark) == 1 else ("", "")


def _unended(tags: Sequence[str], number: int, begun: tuple[str, int], where: Callable[[int], str]) -> str:
    kind, _ = begun
    after = f"followed by {tags[number]}" if number < len(tags) else "the last tag of its sentence"
    return f"{where(number - 1)}: {tags[number - 1]} is {after}; in BIOES an entity ends with E-{kind}, or is one S-{kind}"


def _unbegun(tags: Sequence[str], number: int, scheme: str, where: Callable[[int], str]) -> str:
    before = f"follows {tags[number - 1]}" if number else "is the first tag of its sentence"
    _, kind = _parts(tags[number])
    others = "; if these files are IOB1, say so: --tag.scheme iob1" if scheme == "bio" else ""
    return f"{where(number)}: {tags[number]} {before}; in {scheme.upper()} an entity begins with B-{kind}{others}"
