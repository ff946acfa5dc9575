"""Which tokens go on with a word, by every way in which tokenizers write them."""

from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from shoal.data.draws import uniforms
from shoal.data.tokenizer import TextTokenizer, build_char, train_bpe
from shoal.data.words import Words, special_ids

END = "<|endoftext|>"


def made(library: Tokenizer) -> TextTokenizer:
    library.add_special_tokens([AddedToken(END, special=True)])
    return TextTokenizer(library, END, {})


def words(tokenizer: TextTokenizer, ids: Any) -> list[list[str]]:
    """Tokens as they are written, grouped into words."""
    goes_on = Words.of(tokenizer).continues(np.array([ids]))[0]
    found: list[list[str]] = []
    for token, on in zip(ids, goes_on, strict=True):
        if on:
            found[-1].append(tokenizer.library.id_to_token(int(token)))
        else:
            found.append([tokenizer.library.id_to_token(int(token))])
    return found


def test_wordpiece_marks_what_goes_on() -> None:
    vocabulary = {"[UNK]": 0, "fish": 1, "##es": 2, "swim": 3, ",": 4, "##m": 5}
    tokenizer = made(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))
    assert words(tokenizer, [1, 2, 4, 3, 3, 5, 2]) == [["fish", "##es"], [","], ["swim"], ["swim", "##m", "##es"]]
    assert Words.of(tokenizer).bytes[[1, 2]].tolist() == [4, 2]


def test_metaspace_marks_what_begins_and_punctuation_stands_alone() -> None:
    vocabulary = {"▁the": 0, "▁sh": 1, "oal": 2, ",": 3, "▁": 4, "x": 5, "12": 6, "3": 7}
    library = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    found = words(made(library), [0, 1, 2, 3, 4, 5, 6, 7])
    assert found == [["▁the"], ["▁sh", "oal"], [","], ["▁"], ["x"], ["12", "3"]]


def test_byte_level_words_are_those_of_its_pattern() -> None:
    text = "the shoal_42 swims(naïve fish);\n\treturn 3.14 œuvre 'quoted'\n" * 3
    tokenizer = train_bpe([text], 290)
    ids = tokenizer.encode(text)
    found = ["".join(word) for word in words(tokenizer, ids)]
    expected = [piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]
    assert found == expected
    assert Words.of(tokenizer).bytes[ids].sum() == len(text.encode())


def test_in_writing_without_spaces_every_token_is_a_word_but_no_half_character() -> None:
    tokenizer = train_bpe(["日本語の魚 the fish\n"], 257)  # every byte a token
    ids = tokenizer.encode("日本")
    assert [len(word) for word in words(tokenizer, ids)] == [3, 3]


def test_characters_join_to_words() -> None:
    tokenizer = build_char("the fish,1\n")
    assert ["".join(word) for word in words(tokenizer, tokenizer.encode("the fish, 11\n"))] == [
        "the", " ", "fish", ",", " ", "11", "\n",
    ]  # fmt: skip


def test_special_tokens_belong_to_no_word_and_are_no_text() -> None:
    tokenizer = train_bpe(["fish " * 9], 258, ["<|mask|>"])
    specials = special_ids(tokenizer)
    assert {tokenizer.library.id_to_token(int(token)) for token in specials} == {END, "<|mask|>"}
    assert not Words.of(tokenizer).bytes[specials].any()


def test_numbers_of_a_row_are_even_and_depend_on_key_purpose_and_place_alone() -> None:
    keys = np.arange(2000, dtype=np.uint64)
    draws = uniforms(keys, "test", 50)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.histogram(draws, 20)[0] == pytest.approx(draws.size / 20, rel=0.05)
    for other in (np.roll(draws, 1, axis=0), np.roll(draws, 1, axis=1), uniforms(keys, "other", 50)):
        assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.02
    assert np.array_equal(uniforms(keys[7:9], "test", 10), draws[7:9, :10])
