"""Varied texts: what each way does, that an example's key decides all of it, and that words are lost only where asked."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.core.recipe import Augment
from shoal.core.recipe_file import build_recipe
from shoal.data.examples.augment import WORDS, Augmentation, misspelt
from shoal.data.examples.example import Example
from shoal.data.examples.wordnet import FILES, find_wordnet, read_synonyms

TEXT = "The quick brown fox doesn't jump over the lazy dog, it sleeps."


def augment(**settings: Any) -> Augment:
    return build_recipe({"augment": {"share": 1.0, **settings}}).augment


def words(text: str) -> list[str]:
    return [part for part in WORDS.findall(text) if part[0].isalnum()]


def varied(settings: Augment, text: str = TEXT, key: int = 1, **more: Any) -> str:
    return Augmentation(settings, **more).varied(text, np.random.default_rng(key))


@given(st.text(), st.integers(0, 99))
def test_no_way_makes_an_empty_text_of_one_with_words(text: str, key: int) -> None:
    for settings in (augment(deletion=1.0), augment(swap=1.0), augment(characters=1.0)):
        assert varied(settings, text, key).strip() or not words(text)


@given(st.integers(0, 99))
def test_swapping_keeps_all_words_and_deleting_some(key: int) -> None:
    assert Counter(words(varied(augment(swap=0.5), key=key))) == Counter(words(TEXT))
    left = varied(augment(deletion=0.5), key=key)
    assert not Counter(words(left)) - Counter(words(TEXT))
    assert "  " not in left


def test_about_the_share_of_words_is_deleted() -> None:
    text = " ".join(f"w{number}" for number in range(4000))
    assert len(words(varied(augment(deletion=0.1), text))) == pytest.approx(3600, abs=60)


@given(st.text(alphabet="abcdef", min_size=3), st.integers(0, 99))
def test_a_misspelt_word_is_one_change_away(word: str, key: int) -> None:
    found = misspelt(word, np.random.default_rng(key))
    assert (found[0], found[-1]) == (word[0], word[-1]) or sorted(found) == sorted(word)
    assert abs(len(found) - len(word)) <= 1


def test_synonyms_replace_words_that_have_any(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("  1 The licence.\n")
    with (tmp_path / "data.adj").open("a") as file:
        file.write("00000001 00 a 03 quick 0 fast(p) 0 full_speed 0 001 & 00000002 a 0000 | at speed\n")
    synonyms = read_synonyms(tmp_path)
    assert synonyms("Quick") == ["fast"]
    assert varied(augment(synonyms=1.0), synonyms=synonyms) == TEXT.replace("quick", "fast")


def test_an_example_is_varied_by_its_key_alone_in_its_share_of_readings() -> None:
    example = Example({"text": TEXT, "label": "x"}, "file:1")
    augmentation = Augmentation(build_recipe({"augment": {"share": 0.25, "swap": 0.5}}).augment)
    found = [augmentation.vary(example, ("text", "text_b"), key) for key in range(800)]
    assert [again.values for again in found] == [augmentation.vary(example, ("text",), key).values for key in range(800)]
    assert sum(one is not example for one in found) == pytest.approx(200, abs=50)
    assert all(one.values["label"] == "x" for one in found)


def test_texts_made_beforehand_stand_for_the_text() -> None:
    others = {TEXT: ["one", "two"]}
    seen = {varied(augment(masked=0.5), key=key, others=others) for key in range(50)}
    assert seen == {TEXT, "one", "two"}


def test_a_missing_wordnet_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    monkeypatch.setattr("shoal.data.examples.wordnet.PLACES", ())
    with pytest.raises(InputError, match="wordnet-base"):
        find_wordnet()
