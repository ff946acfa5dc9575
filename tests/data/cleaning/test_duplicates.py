"""Planted copies are found, hardly anything else is, in any memory; the first of each group stays."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from planted import WORDS, planted

from shoal.core.recipe import Clean
from shoal.data.cleaning import batches
from shoal.data.cleaning.clean import clean_sources
from shoal.data.cleaning.draft import Draft
from shoal.data.cleaning.duplicates import KEPT, NEAR, _Groups
from shoal.data.cleaning.signatures import Signer, similarity
from shoal.data.readers import Document
from shoal.data.sources import Source


def source(texts, name="planted"):
    documents = [Document(f"{name}:{number}", text) for number, text in enumerate(texts)]
    return Source(name, str(hash(tuple(texts))), None, lambda: iter(documents))


def cleaned(texts, folder, workers=1, **changes):
    """(kept document numbers, summary)."""
    kept, summary = clean_sources(Clean(**changes), [source(texts)], "text", folder, workers, lambda *_: None)
    return [int(document.name.split(":")[1]) for document in kept.read()], summary


@pytest.mark.parametrize("language", WORDS)
def test_planted_copies_are_found_and_little_else(language, tmp_path):
    texts, exact, near = planted(language, WORDS[language], 600)
    kept, summary = cleaned(texts, tmp_path, exact=True, near=True)
    dropped = set(range(len(texts))) - set(kept)
    copies = {*exact, *near}
    assert len(dropped & set(exact)) >= 0.99 * len(exact)
    assert len(dropped & set(near)) >= 0.9 * len(near)
    assert len(dropped & copies) >= 0.98 * len(dropped)
    counts = {stage["stage"]: stage["dropped"] for stage in summary["stages"]}
    assert counts["exact"] == len(exact)
    assert sum(counts.values()) == len(dropped)
    assert summary["kept_bytes"] == sum(len(texts[number].encode()) for number in kept)


def test_what_is_found_does_not_depend_on_memory_batches_or_order_of_work(tmp_path, monkeypatch):
    texts, *_ = planted("en", WORDS["en"], 300)
    expected, _ = cleaned(texts, tmp_path / "plenty", exact=True, near=True)
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", 20_000)
    found, _ = cleaned(texts, tmp_path / "little", exact=True, near=True, memory_megabytes=0.005)
    assert len(list((tmp_path / "little").glob("cleaning/*.rows.npy"))) > 10
    assert found == expected


def test_exact_alone_wants_every_character_equal_and_keeps_the_first(tmp_path):
    kept, summary = cleaned(["a fish", "a fish ", "a fish", "two", "a fish", "two"], tmp_path, exact=True)
    assert kept == [0, 1, 3]
    assert [stage["dropped"] for stage in summary["stages"]] == [0, 3]
    shown = summary["stages"][1]["examples"]["duplicate"]
    assert [(example["name"], example["found"]) for example in shown] == [
        ("planted:2", "planted:0: a fish"),
        ("planted:4", "planted:0: a fish"),
        ("planted:5", "planted:3: two"),
    ]


def test_enormous_documents_are_equal_only_if_all_their_pieces_are(tmp_path):
    stream = random.Random(3)
    head, tail, other = ("".join(stream.choices("abcdefgh \n", k=size)) for size in (1000, 2500, 2500))
    texts = [head + tail, head + other, head, head + tail, head + tail[:-1]]
    kept, summary = cleaned(texts, tmp_path, exact=True, judged_characters=700)
    assert sorted(set(kept)) == [0, 1, 2, 4]
    assert summary["stages"][1]["rules"] == {"duplicate": [1, len(texts[3])]}


@settings(deadline=None, max_examples=30)
@given(some.integers(5, 95), some.integers(0, 100))
def test_estimated_similarity_is_that_of_the_sets_of_shingles(percent, seed):
    signer = Signer(shingle=1, bands=64, rows=4)
    stream = random.Random(seed)
    common = [f"c{stream.random()}" for _ in range(percent * 4)]
    sides = [common + [f"{side}{stream.random()}" for _ in range((100 - percent) * 2)] for side in "lr"]
    sets = [set(Draft(" ".join(side)).units) for side in sides]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    _, values = signer.sign([signer.shingles(Draft(" ".join(side))) for side in sides])
    assert similarity(values[:1], values[1:])[0] == pytest.approx(
        exact, abs=4.5 * (exact * (1 - exact) / 256) ** 0.5 + 0.005
    )


def test_bands_are_shared_as_often_as_the_formula_says():
    signer = Signer(shingle=1, bands=32, rows=4)
    stream = random.Random(1)
    shared = Counter()
    for number in range(150):
        common = [f"c{number}x{word}" for word in range(120)]
        pair = [common + [f"{side}{number}x{word}" for word in range(60)] for side in "lr"]  # J = 120 / 240
        stream.shuffle(pair)
        bands, _ = signer.sign([signer.shingles(Draft(" ".join(words))) for words in pair])
        shared[bool((bands[:, 0] == bands[:, 1]).any())] += 1
    expected = 1 - (1 - 0.5**4) ** 32
    assert shared[True] / 150 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 150) ** 0.5)


@given(some.lists(some.tuples(some.integers(0, 30), some.integers(0, 30)), max_size=40))
def test_groups_are_connected_components_named_after_their_first(pairs):
    groups = _Groups(np.zeros(31, np.int64))
    naive = list(range(31))
    for left, right in pairs:
        if groups.differ(left, right):
            groups.join(left, right)
        low, high = sorted((naive[left], naive[right]))
        naive = [low if name == high else name for name in naive]
    assert [groups.first(row) for row in range(31)] == naive
    marks = np.zeros(31, np.uint8)
    groups.mark(marks)
    assert [bool(mark == NEAR) for mark in marks] == [row != first for row, first in enumerate(naive)]
    assert {int(mark) for mark in marks} <= {KEPT, NEAR}


def test_documents_too_short_for_a_shingle_are_compared_whole(tmp_path):
    kept, _ = cleaned(["Sea!", "sea", "see", "!!!", "???", "a b c d e f", "A b, c d e: f"], tmp_path, near=True)
    assert kept == [0, 2, 3, 4, 5]


def test_no_documents_have_no_duplicates(tmp_path):
    kept, summary = cleaned(["", " "], tmp_path, exact=True, near=True)
    assert kept == [] and summary["kept_documents"] == 0
