"""The tokenizer's report: its numbers follow from their definitions, counted by hand."""

import numpy as np
import pytest
from corpora import sentences, write_jsonl

from shoal.core.files import read_json
from shoal.core.recipe import Data, Tokenizer
from shoal.data.prepare import prepare
from shoal.data.shards import SPLITS, Corpus
from shoal.data.tokenizer import build_char, read_tokenizer, train_bpe
from shoal.data.tokenizer_page import REPORT, tokenizer_lines, tokenizer_page
from shoal.data.tokenizer_report import longest_tokens, measure_scripts, script_of, script_runs
from shoal.data.wordpiece import train_wordpiece

ENGLISH = "the fish turn at once\n"
CHINESE = "海洋里的鱼。\n"


def test_fertility_is_tokens_a_word_or_where_no_spaces_are_written_a_character():
    tokenizer = build_char(ENGLISH + CHINESE + "ё")
    report = measure_scripts(tokenizer, [ENGLISH * 10, CHINESE * 10, "ё" * 30])
    rows = {row["script"]: row for row in report["scripts"]}
    assert rows["Latin"]["fertility"] == len(ENGLISH) / 5
    assert rows["Latin"]["per"] == "word"
    assert rows["Chinese"]["fertility"] == len(CHINESE) / 6
    assert rows["Chinese"]["per"] == "character"
    assert rows["Chinese"]["bytes_per_token"] == len(CHINESE.encode()) / len(CHINESE)
    sizes = {"Latin": 10 * len(ENGLISH), "Chinese": 10 * len(CHINESE.encode()), "Cyrillic": 60}
    assert report["sample_bytes"] == sum(sizes.values())
    assert {name: row["share"] for name, row in rows.items()} == {
        name: pytest.approx(size / sum(sizes.values())) for name, size in sizes.items()
    }
    assert report["unknown_share"] == 0


def test_a_whole_report_is_what_counting_the_corpus_gives(tmp_path):
    source = write_jsonl(tmp_path / "text.jsonl", [*sentences(200), CHINESE * 30])
    prepare(Data(sources=[str(source)], held_out=0.2), Tokenizer(vocabulary=400), tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    report = read_json(tmp_path / "corpus" / "manifest.json")["tokenizer"]
    train, held_out = (corpus.split(split) for split in SPLITS)
    ids = [stream.windows(np.array([0]), stream.tokens)[0] for stream in (train, held_out)]
    text_tokens = sum(int((part != corpus.end_of_text).sum()) for part in ids)
    assert report["bytes_per_token"] == (train.bytes + held_out.bytes) / text_tokens
    assert report["used"] == len({*ids[0].tolist()} - {corpus.end_of_text})
    assert report["used_share"] == report["used"] / 399
    tokenizer = read_tokenizer(tmp_path / "corpus")
    for row in report["longest"]:
        assert tokenizer.decode([row["id"]]) == row["text"] and len(row["text"].encode()) == row["bytes"]
        assert row["count"] == int((ids[0] == row["id"]).sum())
    assert [row["bytes"] for row in report["longest"]] == sorted((row["bytes"] for row in report["longest"]), reverse=True)


def test_unknown_tokens_are_counted():
    tokenizer = train_wordpiece(["aa bb cc " * 9], 11)
    report = measure_scripts(tokenizer, ["aa bb ß ß"])
    assert report["unknown_share"] == 2 / len(tokenizer.encode("aa bb ß ß"))
    assert "unknown" in tokenizer_lines({"bytes_per_token": 1.0, "used_share": 1.0, **report})[0]


@pytest.mark.parametrize(
    ("character", "script"),
    [("a", "Latin"), ("ß", "Latin"), ("Ａ", "Latin"), ("я", "Cyrillic"), ("海", "Chinese"), ("ひ", "Hiragana"),
     ("한", "Hangul"), ("ไ", "Thai"), ("1", None), (" ", None), ("。", None), ("🐟", None)],
)  # fmt: skip
def test_a_letters_script(character, script):
    assert script_of(character) == script


def test_lines_belong_to_the_script_of_most_of_their_letters_and_neighbours_stay_together():
    text = f"1.\n{ENGLISH}{ENGLISH}2.\nimport 海\n{CHINESE}(3)\n{CHINESE}end"
    runs = list(script_runs(text))
    assert "".join(run for _, run in runs) == text
    assert [script for script, _ in runs] == ["Latin", "Chinese", "Latin"]


def test_kana_make_chinese_characters_japanese():
    assert [script for script, _ in script_runs("東京\nひらがなです\n")] == ["Japanese"]
    assert [script for script, _ in script_runs("東京\n")] == ["Chinese"]


def test_the_page_shows_every_token_as_text_and_needs_nothing_from_outside():
    tokenizer = train_bpe(["alert (1)\n" * 50], 262)
    counts = np.zeros(262, dtype=np.int64)
    report = {
        "bytes_per_token": 2.0, "used_share": 0.5, "vocabulary": 262,
        "longest": [{"id": 1, "text": " <script>\n", "bytes": 10, "count": 3}, *longest_tokens(tokenizer, counts)],
        **measure_scripts(tokenizer, ["<b>bold</b>"]),
    }  # fmt: skip
    page = tokenizer_page(report)
    assert "<script" not in page and "http" not in page
    assert "<code>␣&lt;script&gt;⏎</code>" in page
    assert "\ufffd" not in page


def test_prepare_leaves_the_page_beside_the_corpus(prepared, tmp_path):
    source = write_jsonl(tmp_path / "text.jsonl", list(sentences(100)))
    result = prepared(source)
    assert (result.directory / REPORT).read_text().startswith("<!doctype html>")
    assert result.tokenizer["scripts"][0]["script"] == "Latin"
    assert prepared(source).tokenizer == result.tokenizer
