"""WordPiece and Unigram: exact sizes, repeatable, the ids of `transformers`, lossless where that is promised."""

import argparse
import inspect
import json
import unicodedata

import pytest
from corpora import sentences
from hypothesis import given, settings
from hypothesis import strategies as some

from shoal.core.errors import InputError
from shoal.data.encoder import open_encoder, reference_encoder
from shoal.data.tokenizer import difference, read_tokenizer, train_bpe
from shoal.data.unigram import train_unigram
from shoal.data.wordpiece import train_wordpiece

TEXTS = [
    *sentences(300),
    "深圳的街道很干净。地铁也很方便，我们都喜欢坐地铁。\n" * 20,
    "def naïve(x):\n\treturn x ▁ <0x41>\n" * 5,
]
CODE = [inspect.getsource(argparse)[:30_000]]
PIECES = ["def", "  ", "\n", "\t", "é", "海洋", "的", "🐟", "\u0301", "▁", "<0x41>", "Ġ", "'s", "[MASK]", "##ing", "1999"]
texts = some.text() | some.lists(some.sampled_from(PIECES)).map("".join)


@pytest.fixture(scope="module")
def unigram():
    return train_unigram([*TEXTS, *CODE], 400)


@pytest.fixture(scope="module")
def wordpiece():
    return train_wordpiece(TEXTS, 300)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_unigram_gives_every_text_back_and_the_ids_of_the_reference(unigram, text):
    ids = unigram.encode(text)
    assert unigram.decode(ids) == text
    assert ids.tolist() == reference_encoder(unigram.library.to_str())([text.encode()])[0].tolist()


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_bpe_with_llama3s_pattern_gives_every_text_back_and_the_ids_of_the_reference(text, llama3):
    assert llama3.decode(llama3.encode(text)) == text
    assert llama3.encode(text).tolist() == reference_encoder(llama3.library.to_str())([text.encode()])[0].tolist()


@pytest.fixture(scope="module")
def llama3():
    return train_bpe(TEXTS, 400, pattern="llama3")


@pytest.fixture(scope="module")
def bert(wordpiece):
    """The same vocabulary in `transformers`, built from its list of words, as BERT's checkpoints are."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab=wordpiece.library.get_vocab(), do_lower_case=True)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_wordpiece_gives_the_ids_of_transformers_bert(wordpiece, bert, text):
    expected = bert(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert wordpiece.encode(text).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(text=some.text("abcdefghi natſ海洋的，.()\n"))
def test_wordpiece_gives_words_back_as_they_are_normalised(wordpiece, text):
    ids = wordpiece.encode(text)
    if wordpiece.unknown in ids:
        return
    normal = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    assert "".join(wordpiece.decode(ids).split()) == "".join(normal.split())


def test_auto_tokenizer_loads_wordpiece_as_berts_with_its_frame(wordpiece, tmp_path):
    from transformers import AutoTokenizer

    wordpiece.write(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__.startswith("BertTokenizer")
    assert (theirs.cls_token, theirs.sep_token, theirs.mask_token, theirs.pad_token_id) == ("[CLS]", "[SEP]", "[MASK]", 0)
    text = "The SHOAL of fish, naïve café 海洋"
    first, last = wordpiece.special("[CLS]"), wordpiece.end_of_text
    assert theirs(text)["input_ids"] == [first, *wordpiece.encode(text).tolist(), last]
    pair = theirs("the shoal", "of fish")
    assert pair["token_type_ids"] == [0] * (len(wordpiece.encode("the shoal")) + 2) + [1] * (
        len(wordpiece.encode("of fish")) + 1
    )
    assert theirs("[MASK]")["input_ids"] == [first, wordpiece.special("mask"), last]


def test_cased_wordpiece_keeps_case_and_accents():
    cased = train_wordpiece([*TEXTS, "Der Schwarm wendet sich. Naïve Fische. " * 9], 200, lowercase=False)
    assert cased.decode(cased.encode("Naïve Fische")) == "Naïve Fische"


@pytest.mark.parametrize("kind", ["unigram", "llama3"])
def test_auto_tokenizer_loads_the_others_and_gives_the_same_ids(kind, request, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = request.getfixturevalue(kind)
    tokenizer.write(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[-3:]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert theirs.decode(tokenizer.encode(text).tolist()) == text


@pytest.mark.parametrize("train", [train_unigram, train_wordpiece], ids=lambda train: train.__name__)
def test_training_is_repeatable_and_fills_the_vocabulary_exactly(train):
    first, second = (train(CODE, 350) for _ in range(2))
    assert first.library.to_str() == second.library.to_str()
    assert first.vocabulary == 350
    assert {*first.library.get_vocab().values()} == {*range(350)}
    with pytest.raises(InputError, match=r"the text yields only \d+ tokens"):
        train(["a b c"], 3000)


def test_wordpiece_keeps_frequent_characters_and_says_what_is_unknown():
    tokenizer = train_wordpiece(["aaaa bbbb cc " * 50, "的" * 50 + "鱻"], 13)
    vocabulary = tokenizer.library.get_vocab()
    assert {"a", "##a", "b", "##b", "的"} <= vocabulary.keys() and "鱻" not in vocabulary
    assert tokenizer.encode("鱻").tolist() == [tokenizer.unknown]
    assert sorted(tokenizer.special_tokens.values()) == [0, 1, 2, 3, 4]


def test_a_real_bert_tokenizer_of_another_hand_is_read(wordpiece, tmp_path):
    wordpiece.write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert read_tokenizer(tmp_path).end == "[SEP]"


def test_a_tokenizer_with_other_numbers_is_told_from_one_that_only_has_more(bpe, wordpiece):
    from shoal.data.tokenizer import with_special

    assert difference(bpe, with_special(bpe, ["<|mask|>"])) == ""
    assert difference(bpe, train_bpe(sentences(300, seed=1), 300)).endswith("of 300 differ")
    assert "token 0 is '<|endoftext|>' in one and '[PAD]' in the other" in difference(bpe, wordpiece)


def test_other_kinds_go_through_the_reference(wordpiece, unigram):
    for tokenizer in (wordpiece, unigram):
        assert open_encoder(tokenizer.library.to_str()).__qualname__.startswith("reference_encoder")
