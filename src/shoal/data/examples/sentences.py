"""A sentence with entities, from any of the ways in which files hold it: words and tags, or a text and its entities.

Words that a file gives one by one are put together by spaces; where most of them are Chinese or Japanese, by nothing.
A text is cut into words (letters and digits), signs, and Chinese or Japanese characters, each by itself; or into characters.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shoal.core.errors import InputError
from shoal.data.examples.conll import LINE
from shoal.data.examples.entities import Entity, Scheme, read_tags
from shoal.data.examples.example import Example, Role

WIDE = "\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0002fa1f"
"""Chinese and Japanese characters, their signs, and wide forms of others: scripts without spaces."""

COMBINING = "\u0300-\u036f\u0900-\u0dff"
"""Accents, and the scripts of India, whose vowels are signs on the letter before."""

UNITS = {"word": re.compile(rf"[{WIDE}]|(?:[^\W{WIDE}]|[{COMBINING}])+|\S"), "character": re.compile(r"\S")}

TEXT = Role("text", ("text", "sentence"), needed=False)
ENTITIES = Role("entities", ("entities", "spans"), needed=False)
TOKENS = Role("tokens", ("tokens", "words"), instead="text")
TAGS = Role("tags", ("tags", "ner_tags", "ner", "labels"), instead="entities")
FIRST_LINE = Role("line", (LINE,), needed=False)
ROLES = (TEXT, ENTITIES, TOKENS, TAGS, FIRST_LINE)


@dataclass(frozen=True)
class Sentence:
    """`places`: where each word begins and ends in the text. `spaced`: whether each is taken to stand behind a space.

    `where`: the file's place of a word, by its number.
    """

    text: str
    words: list[str]
    places: list[tuple[int, int]]
    spaced: list[bool]
    entities: list[Entity]
    where: Callable[[int], str]


def read_sentence(example: Example, scheme: Scheme, units: Literal["word", "character"]) -> Sentence:
    """The sentence of an example; `InputError` says where it is wrong."""
    return _of_tokens(example, scheme) if "tokens" in example.values else _of_text(example, units)


def tags_of(example: Example) -> list[str]:
    """The tags of an example as they are; none where it has others' or nothing."""
    tags = example.values.get("tags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, Sequence) and not isinstance(tags, str) else []


def kinds_of(example: Example) -> set[str]:
    """The types of the entities that an example gives with its text."""
    entities = example.values.get("entities")
    if not isinstance(entities, Sequence):
        return set()
    return {kind for _, _, kind in map(_ends, entities) if isinstance(kind, str)}


def put_together(words: Sequence[str]) -> tuple[str, list[tuple[int, int]], bool]:
    """(text, where each word begins and ends in it, whether spaces stand between)."""
    wide = sum(bool(re.match(f"[{WIDE}]", word)) for word in words)
    space = "" if 2 * wide > len(words) else " "
    places: list[tuple[int, int]] = []
    start = 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + len(space)
    return space.join(words), places, bool(space)


def _of_tokens(example: Example, scheme: Scheme) -> Sentence:
    words = example.texts("tokens")
    tags = example.values.get("tags")
    if isinstance(tags, Sequence) and any(isinstance(tag, int) for tag in tags):
        raise InputError(
            f"{example.where}: the tags are numbers, and nothing says what each means; write them as B-TYPE, I-TYPE, O, or "
            "give a `datasets` folder whose tags are a ClassLabel"
        )
    tags = example.texts("tags")
    if not words:
        raise InputError(f"{example.where}: has no tokens")
    if len(words) != len(tags):
        raise InputError(f"{example.where}: {len(words)} tokens and {len(tags)} tags; every token has one")
    line = example.values.get("line")

    def where(number: int) -> str:
        if line is not None:
            return f"{example.where.rpartition(':')[0]}:{line + number}"
        return f"{example.where}, token {number + 1} '{words[number]}'"

    text, places, spaced = put_together(words)
    return Sentence(text, words, places, [spaced] * len(words), read_tags(tags, scheme, where), where)


def _of_text(example: Example, units: Literal["word", "character"]) -> Sentence:
    text = example.text("text")
    places = [match.span() for match in UNITS[units].finditer(text)]
    if not places:
        raise InputError(f"{example.where}: the text is empty")
    given = example.values.get("entities")
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"{example.where}: the entities are {type(given).__name__}, not a list of them")
    starts, ends = [start for start, _ in places], [end for _, end in places]
    entities: list[Entity] = []
    for start, end, kind in sorted(_checked(entity, text, example.where) for entity in given):
        first, last = bisect_left(starts, start), bisect_left(ends, end)
        shown = f"{example.where}: the entity '{text[start:end]}' at {start} to {end}"
        if starts[first : first + 1] != [start] or ends[last : last + 1] != [end]:
            raise InputError(f"{shown} begins or ends within a word; tag characters: --tag.units character")
        if entities and first < entities[-1].end:
            raise InputError(f"{shown} overlaps another one; a word has one tag")
        entities.append(Entity(kind, first, last + 1))
    spaced = [text[max(0, start - 1)].isspace() for start in starts]
    words = [text[start:end] for start, end in places]
    return Sentence(text, words, places, spaced, entities, lambda number: f"{example.where}, '{words[number]}'")


def _checked(entity: Any, text: str, where: str) -> tuple[int, int, str]:
    start, end, kind = _ends(entity)
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(kind, str) or not kind:
        raise InputError(f"{where}: an entity is {{start, end, label}}, in characters, not {entity!r:.80}")
    if not 0 <= start < end <= len(text):
        raise InputError(f"{where}: an entity lies at {start} to {end}, and the text has {len(text)} characters")
    return start, end, kind


def _ends(entity: Any) -> tuple[Any, Any, Any]:
    """(start, end, type) of an entity, an object or a list of the three; None for what isn't there."""
    if isinstance(entity, Mapping):
        return entity.get("start"), entity.get("end"), entity.get("label", entity.get("type"))
    if isinstance(entity, Sequence) and not isinstance(entity, str) and len(entity) == 3:
        return entity[0], entity[1], entity[2]
    return None, None, None
