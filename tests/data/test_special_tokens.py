"""Special tokens: found by name or by what they are for, added where a task needs them, and never yielded by a text."""

import argparse
import inspect
import json
import string

import pytest
from corpora import sentences
from tokenizers import AddedToken

from shoal.core.errors import InputError
from shoal.core.recipe import Tokenizer
from shoal.data.special_tokens import FILL_IN, SENTINELS
from shoal.data.tokenizer import build_char, read_tokenizer, train_bpe, with_special
from shoal.data.tokenizer_choice import TRAINERS, for_task, given_tokenizer, tokenizer_settings
from shoal.data.unigram import train_unigram
from shoal.data.wordpiece import train_wordpiece

TEXTS = list(sentences(200))
CODE = [inspect.getsource(argparse)[:30_000]]
SPECIAL = ["<|mask|>", "<|fim_prefix|>"]
KINDS = {
    "bpe": lambda special: train_bpe(TEXTS, 320, special),
    "llama3": lambda special: train_bpe(TEXTS, 320, special, "llama3"),
    "unigram": lambda special: train_unigram(CODE, 320, special),
    "wordpiece": lambda special: train_wordpiece(TEXTS, 160, special),
    "char": lambda special: build_char(string.printable, special),
}


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_written_in_a_text_are_text(kind):
    tokenizer = KINDS[kind](SPECIAL)
    assert {*SPECIAL, tokenizer.end} <= tokenizer.special_tokens.keys()
    written = "".join(tokenizer.special_tokens)
    assert not {*tokenizer.special_tokens.values()} & {*tokenizer.encode(f"a {written} b").tolist()} - {tokenizer.unknown}


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_survive_writing_and_reading(kind, tmp_path):
    tokenizer = KINDS[kind](SPECIAL)
    tokenizer.write(tmp_path)
    read = read_tokenizer(tmp_path)
    assert read.special_tokens == tokenizer.special_tokens
    assert (read.end, read.special("mask")) == (tokenizer.end, tokenizer.special("mask"))


def test_tokens_are_found_by_what_they_are_for_whatever_they_are_called(bpe):
    wordpiece = KINDS["wordpiece"]([])
    assert wordpiece.special("mask") == wordpiece.special_tokens["[MASK]"]
    assert wordpiece.special("begin") == wordpiece.special_tokens["[CLS]"]
    assert bpe.special("begin") == bpe.end_of_text
    starcoder = with_special(bpe, ["<fim_prefix>", "<extra_id_7>"])
    assert starcoder.special("<|fim_prefix|>") == starcoder.special_tokens["<fim_prefix>"]
    assert starcoder.special("<|extra_7|>") == starcoder.special_tokens["<extra_id_7>"]


def test_a_lacking_token_is_an_error_that_says_how_to_add_it(bpe):
    with pytest.raises(InputError, match=r"no special token <\|mask\|>.*--tokenizer\.special '\[\"<\|mask\|>\"\]'"):
        bpe.special("mask")
    assert with_special(bpe, ["<|mask|>"]).special("mask") == bpe.vocabulary


@pytest.mark.parametrize("token", ["", "the", "<|", "a|>", "<|two words|>", "<|line\n|>"])
def test_a_special_token_that_a_text_could_yield_is_refused(token):
    with pytest.raises(InputError, match=r"tokenizer\.special: .* could also be written in a text"):
        train_bpe(TEXTS, 320, [token])


def test_a_task_gets_what_it_needs_and_the_tokenizer_would_lack(bpe, tmp_path):
    assert for_task(Tokenizer(), "causal") == Tokenizer()
    assert for_task(Tokenizer(), "masked").special == ["<|mask|>"]
    assert for_task(Tokenizer(kind="wordpiece"), "masked").special == []
    assert for_task(Tokenizer(special=["<|mine|>"]), "infill").special == ["<|mine|>", *FILL_IN, *SENTINELS]
    with_special(bpe, ["<mask>"]).write(tmp_path / "has")
    bpe.write(tmp_path / "has-not")
    assert for_task(Tokenizer(path=str(tmp_path / "has")), "masked").special == []
    choice = for_task(Tokenizer(path=str(tmp_path / "has-not")), "masked")
    assert given_tokenizer(choice).special("mask") == bpe.vocabulary


def test_settings_name_what_a_tokenizer_depends_on_and_old_ones_stay_as_they_were():
    plain = {"kind": "bpe", "vocabulary": 8192, "sample_bytes": 16_000_000}
    assert tokenizer_settings(Tokenizer()) == plain
    assert tokenizer_settings(Tokenizer(kind="char")) == {"kind": "char"}
    changed = [Tokenizer(special=["<|mask|>"]), Tokenizer(pattern="llama3"), Tokenizer(kind="unigram")]
    assert all(tokenizer_settings(choice) != plain for choice in changed)
    wordpieces = [tokenizer_settings(Tokenizer(kind="wordpiece", lowercase=lower)) for lower in (True, False)]
    assert wordpieces[0] != wordpieces[1]


def test_a_token_that_a_tokenizer_has_and_a_text_could_yield_becomes_special_where_it_is(bpe):
    library = type(bpe.library).from_str(bpe.library.to_str())
    library.add_tokens([AddedToken("<|fim_prefix|>", special=False)])
    qwen = with_special(type(bpe)(library, bpe.end, bpe.config), ["<|fim_prefix|>", "<|fim_suffix|>"])
    assert [qwen.special(name) - bpe.vocabulary for name in ("<|fim_prefix|>", "<|fim_suffix|>")] == [0, 1]
    assert bpe.vocabulary not in qwen.encode("a <|fim_prefix|>")


def test_an_ordinary_token_can_not_be_made_special(bpe):
    tree = json.loads(bpe.library.to_str())
    tree["model"]["vocab"]["<x>"] = len(tree["model"]["vocab"])
    odd = type(bpe)(type(bpe.library).from_str(json.dumps(tree)), bpe.end, bpe.config)
    with pytest.raises(InputError, match="'<x>' is an ordinary token"):
        with_special(odd, ["<x>"])


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_vocabulary_without_room_for_its_special_tokens_says_what_it_needs(kind):
    with pytest.raises(InputError, match=r"tokenizer\.vocabulary is 5; .* needs \d+ at least"):
        TRAINERS[kind](TEXTS, Tokenizer(kind=kind, vocabulary=5, special=["<|mask|>"]))
