"""A corpus on disk: whole or refused, and windows read right wherever they lie."""

import pickle
import time

import numpy as np
import pytest
from corpora import sentences, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as some

from shoal.core.errors import CorpusError
from shoal.data.shards import Corpus, Shard, TokenStream, token_dtype


@pytest.fixture
def corpus(prepared, tmp_path):
    write_jsonl(tmp_path / "text.jsonl", list(sentences(400)))
    return Corpus.open(prepared(tmp_path / "text.jsonl").directory, verify=True)


@settings(max_examples=50, deadline=None)
@given(sizes=some.lists(some.integers(1, 9), min_size=1, max_size=6), length=some.integers(1, 20), data=some.data())
def test_windows_across_any_number_of_shards_equal_slices_of_the_whole(tmp_path_factory, sizes, length, data):
    folder = tmp_path_factory.mktemp("shards")
    whole = np.random.default_rng(0).integers(0, 70_000, sum(sizes)).astype(np.uint32)
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    for number, part in enumerate(parts):
        (folder / str(number)).write_bytes(part.tobytes())
    stream = TokenStream(tuple(Shard(folder / str(n), len(p), "") for n, p in enumerate(parts)), "<u4", 1, 1)
    length = min(length, stream.tokens)
    starts = data.draw(some.lists(some.integers(0, stream.tokens - length), max_size=5))
    windows = stream.windows(np.array(starts, dtype=np.int64), length)
    assert windows.dtype == np.int64 and windows.shape == (len(starts), length)
    for row, start in zip(windows, starts, strict=True):
        np.testing.assert_array_equal(row, whole[start : start + length])


def test_windows_beyond_the_end_are_refused(corpus):
    stream = corpus.split("train")
    stream.windows(np.array([stream.tokens - 10]), 10)
    for start in (stream.tokens - 9, -1):
        with pytest.raises(IndexError, match="windows of 10 tokens"):
            stream.windows(np.array([start]), 10)


def test_a_batch_takes_less_than_a_millisecond(corpus):
    stream = corpus.split("train")
    starts = np.random.default_rng(0).integers(0, stream.tokens - 257, 16)
    stream.windows(starts, 257)
    seconds = []
    for _ in range(50):
        begin = time.perf_counter()
        stream.windows(starts, 257)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.001


def test_a_stream_can_be_sent_to_another_process(corpus):
    stream = corpus.split("train")
    copy = pickle.loads(pickle.dumps(stream))
    np.testing.assert_array_equal(copy.windows(np.array([5]), 50), stream.windows(np.array([5]), 50))


def test_tokens_take_two_bytes_while_they_fit():
    assert [token_dtype(size) for size in (66, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]


def test_a_missing_corpus_says_how_to_make_one(tmp_path):
    with pytest.raises(CorpusError, match=r"no corpus there .* make one: shoal prepare"):
        Corpus.open(tmp_path / "nothing")


def test_a_missing_or_cut_shard_is_found_on_opening(corpus):
    shard = corpus.split("train").shards[0].path
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(CorpusError, match=f"train-00000.bin: has {len(content) - 2} bytes instead of {len(content)}"):
        Corpus.open(corpus.directory)
    shard.unlink()
    with pytest.raises(CorpusError, match=r"train-00000\.bin: is missing"):
        Corpus.open(corpus.directory)


def test_changed_bytes_are_found_when_checksums_are_asked_for(corpus):
    shard = corpus.split("train").shards[0].path
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    Corpus.open(corpus.directory)
    with pytest.raises(CorpusError, match=r"train-00000\.bin: damaged"):
        Corpus.open(corpus.directory, verify=True)
    corpus.tokenizer_path.write_text("{}")
    shard.write_bytes(bytes(content[:100]) + bytes([content[100] ^ 1]) + bytes(content[101:]))
    with pytest.raises(CorpusError, match="another tokenizer"):
        Corpus.open(corpus.directory, verify=True)


def test_a_damaged_manifest_is_a_clear_error(corpus):
    (corpus.directory / "manifest.json").write_text('{"version": 1}')
    with pytest.raises(CorpusError, match=r"manifest\.json: damaged"):
        Corpus.open(corpus.directory)
    (corpus.directory / "manifest.json").write_text("{")
    with pytest.raises(CorpusError, match=r"manifest\.json: damaged"):
        Corpus.open(corpus.directory)
