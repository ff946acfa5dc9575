"""Entities as tags: the same entities from every scheme, as `seqeval` reads them; and what is wrong, with its place."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from shoal.core.errors import InputError
from shoal.data.examples.entities import (
    Entity,
    Scheme,
    best_labels,
    followers,
    labels_of,
    read_tags,
    scheme_of,
    write_tags,
)

LETTERS = {"bio": "BI", "bioes": "BIES"}


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """(entities, number of words), neighbours without a gap among them."""
    entities, words = [], 0
    for gap, length, kind in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("XY")), max_size=6)
    ):
        entities.append(Entity(kind, words + gap, words + gap + length))
        words += gap + length
    return entities, words + draw(st.integers(not words, 2))


def iob1(entities: list[Entity], words: int) -> list[str]:
    tags = write_tags(entities, words, "bio")
    for before, entity in itertools.pairwise([None, *entities]):
        if before is None or before[0] != entity.kind or before[2] != entity.first:
            tags[entity.first] = f"I-{entity.kind}"
    return tags


@given(sentences())
def test_every_scheme_tells_the_entities_that_seqeval_reads(sentence: tuple[list[Entity], int]) -> None:
    entities, words = sentence
    for scheme, tags, theirs in (
        ("bio", write_tags(entities, words, "bio"), IOB2),
        ("bioes", write_tags(entities, words, "bioes"), IOBES),
        ("iob1", iob1(entities, words), IOB1),
    ):
        assert read_tags(tags, scheme, str) == entities
        read = Entities([tags], theirs).entities[0]
        assert [Entity(entity.tag, entity.start, entity.end) for entity in read] == entities
        if entities and (scheme != "iob1" or all(tag[0] != "B" for tag in tags)):
            assert scheme_of([tags]) == scheme


def test_bmes_and_bilou_are_bioes() -> None:
    for tags in (["B-X", "M-X", "E-X", "S-Y", "O"], ["B-X", "I-X", "L-X", "U-Y", "O"]):
        assert scheme_of([tags]) == "bioes"
        assert read_tags(tags, "bioes", str) == [Entity("X", 0, 3), Entity("Y", 3, 4)]


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("bio", "O I-X", "word 1: I-X follows O; in BIO an entity begins with B-X; if these files are IOB1, say so"),
        ("bio", "I-X O", "word 0: I-X is the first tag of its sentence; in BIO"),
        ("bio", "B-X I-Y", "word 1: I-Y follows B-X; in BIO an entity begins with B-Y"),
        ("bio", "O S-X", "word 1: 'S-X' is no tag of BIO, which has O, B-TYPE, I-TYPE"),
        ("bio", "O PER", "word 1: 'PER' is no tag of BIO"),
        ("bio", "O B-", "word 1: 'B-' is no tag of BIO"),
        ("bioes", "B-X O", "word 0: B-X is followed by O; in BIOES an entity ends with E-X, or is one S-X"),
        ("bioes", "B-X I-X", "word 1: I-X is the last tag of its sentence; in BIOES"),
        ("bioes", "B-X S-Y", "word 0: B-X is followed by S-Y"),
        ("bioes", "O E-X", "word 1: E-X follows O; in BIOES an entity begins with B-X"),
        ("iob1", "O X-Y", "word 1: 'X-Y' is no tag of IOB1"),
    ],
)
def test_a_wrong_tag_is_told_with_its_place(scheme: Scheme, tags: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_tags(tags.split(" "), scheme, lambda number: f"word {number}")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_the_best_labels_are_the_likeliest_whole_entities_of_all_sequences(scheme: Scheme) -> None:
    labels = labels_of("XY", scheme)
    random = np.random.default_rng(1)
    changed = 0
    for _ in range(20):
        scores = random.normal(size=(3, len(labels)))
        found = best_labels(scores, followers(labels))
        whole = [numbers for numbers in itertools.product(range(len(labels)), repeat=3) if is_whole(labels, numbers, scheme)]
        best = max(whole, key=lambda numbers: scores[range(3), numbers].sum())
        assert found.tolist() == list(best)
        changed += found.tolist() != scores.argmax(1).tolist()
    assert changed > 3


def is_whole(labels: list[str], numbers: tuple[int, ...], scheme: Scheme) -> bool:
    try:
        read_tags([labels[number] for number in numbers], scheme, str)
    except InputError:
        return False
    return True
