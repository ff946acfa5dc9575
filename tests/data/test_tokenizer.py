"""Tokenizers: exact sizes, lossless, the same in `transformers`, and the fast roads give the reference's ids."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from corpora import sentences
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from shoal.core.errors import InputError
from shoal.data import encoder
from shoal.data.encoder import open_encoder, reference_encoder
from shoal.data.tokenizer import build_char, read_tokenizer, sample_texts, train_bpe

PYTHON = "def f(x):\n    return {'it\\'s': x + 1999}  # naïve\n\n\n\tprint(f'{x!r}')\r\n<|endoftext|> "
texts = some.text() | some.lists(some.sampled_from([*PYTHON, "'s", "'ll", "  ", " \n", "é", "海", "🐟", "\u0301"])).map(
    "".join
)
CHARACTERS = sorted(set(PYTHON) | set("abcdefghijklmnopqrstuvwxyz\u2028\u0301海🐟"))


def ids_of(encode, text):
    return encode([text.encode()])[0].tolist()


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_bpe_is_lossless_and_the_fast_road_gives_the_references_ids(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text
    assert ids_of(bpe._encode, text) == ids_of(reference_encoder(bpe.library.to_str()), text)


@settings(max_examples=200, deadline=None)
@given(text=some.text(some.sampled_from(CHARACTERS)))
def test_char_is_lossless_has_one_token_a_character_and_gives_the_references_ids(text):
    tokenizer = build_char(CHARACTERS)
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert ids_of(tokenizer._encode, text) == ids_of(reference_encoder(tokenizer.library.to_str()), text)


@pytest.fixture(scope="module")
def llama3(bpe):
    """A tokenizer.json built like Llama 3's."""
    tree = json.loads(bpe.library.to_str())
    split = {"type": "Split", "pattern": {"Regex": encoder.LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tree["model"]["ignore_merges"] = True
    return json.dumps({**tree, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_only]}})


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_the_fast_road_gives_the_references_ids_with_llama3s_pattern_too(llama3, text):
    assert ids_of(open_encoder(llama3), text) == ids_of(reference_encoder(llama3), text)


def test_the_fast_road_is_taken_for_our_own_tokenizers_and_those_like_llama3s(bpe, llama3):
    assert isinstance(open_encoder(bpe.library.to_str()), encoder._Fast)
    assert isinstance(open_encoder(llama3), encoder._Fast)


def test_without_gigatoken_the_reference_does_the_work(bpe, monkeypatch):
    monkeypatch.setattr(encoder, "gigatoken", None)
    slow = open_encoder(bpe.library.to_str())
    assert not isinstance(slow, encoder._Fast)
    assert ids_of(slow, PYTHON) == ids_of(bpe._encode, PYTHON)


def test_the_fast_road_starts_its_cache_anew_now_and_then(bpe, monkeypatch):
    monkeypatch.setattr(encoder, "CACHE_BYTES", 100)
    fast = open_encoder(bpe.library.to_str())
    for text in sentences(5):
        assert ids_of(fast, text) == ids_of(reference_encoder(bpe.library.to_str()), text)


def test_characters_on_which_unicode_versions_differ_go_to_the_reference(bpe):
    reference = reference_encoder(bpe.library.to_str())
    for point in (0x088F, 0x0C5C, 0x10940, 0xA7CE):
        text = f"a{chr(point)}b {chr(point)}"
        assert ids_of(bpe._encode, text) == ids_of(reference, text)
        for found, expected in zip(
            bpe._encode([b"plain", text.encode()]), reference([b"plain", text.encode()]), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\d|\s+|\w+"}, "behavior": "Isolated", "invert": False}},
    ],
    ids=str,
)  # fmt: skip
def test_other_kinds_of_tokenizers_take_the_reference_road(bpe, change):
    tree = {**json.loads(bpe.library.to_str()), **change}
    assert not isinstance(open_encoder(json.dumps(tree)), encoder._Fast)


def test_a_trained_vocabulary_has_exactly_the_size_asked_for():
    assert train_bpe(sentences(200), 321).vocabulary == 321


def test_training_is_repeatable(bpe):
    assert train_bpe(sentences(300), 300).library.to_str() == bpe.library.to_str()


def test_a_vocabulary_that_the_text_cant_fill_is_an_error_that_says_how_many_it_can():
    with pytest.raises(InputError, match=r"yields only 2\d\d tokens; use --tokenizer.vocabulary 2\d\d or less"):
        train_bpe(["aaaa"], 500)
    with pytest.raises(InputError, match="needs 257 at least"):
        train_bpe(["aaaa"], 256)


def test_an_unknown_character_is_an_error_that_names_it():
    with pytest.raises(InputError, match=r"the character 'ß' \(U\+00DF\) is not in the character vocabulary"):
        build_char("abc").encode("abcß")


def test_characters_have_ids_in_code_point_order_and_the_end_comes_last():
    tokenizer = build_char("cab\n")
    assert tokenizer.encode("\nabc").tolist() == [0, 1, 2, 3]
    assert (tokenizer.end_of_text, tokenizer.vocabulary) == (4, 5)


def test_an_end_of_text_written_in_a_text_is_text(bpe):
    for tokenizer in (bpe, build_char("<|endoftext|>")):
        ids = tokenizer.encode("<|endoftext|>")
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode([*ids, tokenizer.end_of_text]) == "<|endoftext|><|endoftext|>"


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_auto_tokenizer_loads_the_folder_and_gives_the_same_ids(kind, bpe, tmp_path):
    from transformers import AutoTokenizer

    text = PYTHON.replace("<|endoftext|>", "")
    tokenizer = bpe if kind == "bpe" else build_char(text)
    tokenizer.write(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text).tolist()) == text
    assert theirs.eos_token_id == tokenizer.end_of_text
    assert len(theirs) == tokenizer.vocabulary


def test_an_existing_tokenizer_is_read_from_its_file_or_folder_with_its_own_end(tmp_path):
    library = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.train_from_iterator(
        sentences(50), trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    library.save(str(tmp_path / "tokenizer.json"))
    text = next(sentences(1, seed=5))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = read_tokenizer(path)
        assert tokenizer.end == "</s>"
        assert tokenizer.decode(tokenizer.encode(text)) == text
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<unk>"}}))
    assert read_tokenizer(tmp_path).end == "<unk>"


def test_threads_share_an_encoder_without_getting_in_each_others_way(bpe):
    texts = [text.encode() for text in sentences(60)]
    encode = open_encoder(bpe.library.to_str())
    expected = [ids.tolist() for ids in encode(texts)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: encode(texts), range(200)))
    finally:
        sys.setswitchinterval(before)
    assert all([ids.tolist() for ids in result] == expected for result in results)


def test_tokenizers_that_cant_be_used_say_why(bpe, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json there"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a tokenizer\.json"):
        read_tokenizer(tmp_path)
    tree = json.loads(bpe.library.to_str().replace("<|endoftext|>", "<end>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"no token that ends a text \(looked for <\|endoftext\|>, .*\"eos_token\""):
        read_tokenizer(tmp_path)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("limit", [1_000, 30_000, 10**9])
def test_a_sample_is_bounded_and_spread_evenly(limit):
    whole = list(sentences(1000))
    sample = sample_texts(whole, limit)
    size = sum(len(text.encode()) for text in whole)
    taken = sum(len(text.encode()) for text in sample)
    assert min(size, limit) / 3 < taken <= limit
    positions = [whole.index(text) for text in sample]
    gaps = np.diff([0, *positions, len(whole)])
    assert gaps.max() <= 3 * len(whole) / len(sample)
