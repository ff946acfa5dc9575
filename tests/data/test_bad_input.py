"""What can't be used: named by file and line, left out on request and counted, and never half of it taken for whole."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from corpora import sentences, write_jsonl
from pyarrow import parquet
from tests.core.limits import largest_file

from shoal.commands.prepare import Arguments, run
from shoal.core.errors import CorpusError, InputError, ShoalError
from shoal.core.recipe import Data, Tokenizer
from shoal.data import readers
from shoal.data.prepare import prepare
from shoal.data.shards import Corpus
from shoal.data.sources import open_source

BROKEN = [
    b'{"text": "half',
    b'["a list"]',
    b'{"body": "no text"}',
    b'{"text": 7}',
    b'{"text": "\xff"}',
    b'{"text": "\\udc00"}',
    b'{"text": "many digits", "number": ' + b"1" * 5000 + b"}",
]


def broken_jsonl(path: Path) -> Path:
    """Whole and broken lines in turn."""
    lines = [line for number, bad in enumerate(BROKEN) for line in (json.dumps({"text": f"text {number}"}).encode(), bad)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_broken_lines_are_left_out_counted_and_the_first_few_told_by_file_and_number(tmp_path):
    source = open_source(str(broken_jsonl(tmp_path / "a.jsonl")), "text", on_error="skip")
    for _ in range(2):  # counted anew each time
        assert [document.text for document in source] == [f"text {number}" for number in range(len(BROKEN))]
        assert source.faults.count == len(BROKEN)
        assert [fault.partition(": ")[0] for fault in source.faults.first] == [
            f"{tmp_path}/a.jsonl:{number}" for number in (2, 4, 6, 8, 10)
        ]


def test_without_leave_a_broken_line_stops_and_the_message_says_how_to_go_on(tmp_path):
    path = broken_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl:2: not valid JSON.*--on-error skip"):
        list(open_source(str(path), "text", on_error="stop"))


def test_rows_without_text_are_left_out_likewise(tmp_path):
    parquet.write_table(arrow.table({"text": ["one", None, "three"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: row 2: the field 'text' is NoneType"):
        list(open_source(str(tmp_path / "a.parquet"), "text"))
    source = open_source(str(tmp_path / "a.parquet"), "text", on_error="skip")
    assert [document.text for document in source] == ["one", "three"]
    assert source.faults.first == [f"{tmp_path}/a.parquet: row 2: the field 'text' is NoneType, not text"]


def test_a_text_file_that_is_not_utf8_is_left_out_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 100)
    (tmp_path / "a.txt").write_bytes(b"line\n" * 200 + b"\xff")
    (tmp_path / "b.txt").write_text("fine")
    source = open_source(str(tmp_path), "text", on_error="skip")
    assert [(document.text, document.continues) for document in source] == [("fine", False)]
    assert source.faults.first == [f"{tmp_path}/a.txt: not UTF-8 text at byte 1000 (invalid start byte)"]


def test_lines_of_a_text_file_may_be_documents_each(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\n two \nbad \xff\nlast")
    with pytest.raises(InputError, match=r"a\.txt:4: not UTF-8 text at byte 4 of the line"):
        list(open_source(str(tmp_path / "a.txt"), "text", lines=True))
    source = open_source(str(tmp_path / "a.txt"), "text", lines=True, on_error="skip")
    assert [(document.name, document.text) for document in source] == [
        (f"{tmp_path}/a.txt:1", "one"), (f"{tmp_path}/a.txt:3", " two "), (f"{tmp_path}/a.txt:5", "last"),
    ]  # fmt: skip


def test_a_source_of_which_nothing_can_be_used_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_text("{broken\n" * 9)
    with pytest.raises(InputError, match=r"holds no text that can be used: 9 left out, first .*a\.jsonl:1: not valid JSON"):
        list(open_source(str(tmp_path / "a.jsonl"), "text", on_error="skip"))


def test_a_cut_archive_stops_even_so(tmp_path):
    whole = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in sentences(100)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: can't be read: Truncated"):
        list(open_source(str(tmp_path / "a.jsonl.gz"), "text", on_error="skip"))


def test_a_file_of_an_installed_package_is_a_source():
    source = open_source("package:shoal/recipes/gpt-demo.yaml", "text")
    assert "Python's own standard library" in "".join(document.text for document in source)
    with pytest.raises(InputError, match=r"no package 'shaol' is installed; install it: pip install shaol"):
        open_source("package:shaol/a.txt", "text")
    with pytest.raises(InputError, match=r"no such file or folder; did you mean .*gpt-demo\.yaml"):
        open_source("package:shoal/recipes/gpt-dem.yaml", "text")


def test_prepare_goes_on_with_skip_where_it_stopped_and_tells_what_it_left_out(tmp_path, capfd):
    source = write_jsonl(tmp_path / "text.jsonl", list(sentences(300)))
    source.write_bytes(source.read_bytes() + b"{broken\n" * 7)
    keys = ["--data.sources", str(source), "--data.directory", str(tmp_path / "corpus"), "--tokenizer.vocabulary", "300"]
    with pytest.raises(InputError, match=r"text\.jsonl:301: not valid JSON"):
        run(Arguments(), keys)
    result = run(Arguments(), [*keys, "--data.on_error", "skip"])
    told = capfd.readouterr().err
    assert (result["documents"], result["left_out"], len(result["faults"])) == (300, 7, 5)
    assert "left out, as it can't be used (7):" in told and "text.jsonl:301: not valid JSON" in told and "and 2 more" in told
    assert "bytes a token" in told and "Latin" in told
    assert run(Arguments(json=True), keys)["left_out"] == 7


@pytest.fixture
def corpus(prepared, tmp_path):
    return prepared(write_jsonl(tmp_path / "text.jsonl", list(sentences(300)))).directory


def test_a_shard_that_was_cut_is_noticed_when_the_corpus_is_opened(corpus):
    shard = corpus / "train-00001.bin"
    os.truncate(shard, shard.stat().st_size - 2)
    with pytest.raises(CorpusError, match=r"train-00001\.bin: has \d+ bytes instead of \d+; delete .* and prepare it anew"):
        Corpus.open(corpus)


def test_a_shard_that_was_cut_after_opening_is_noticed_when_it_is_read(corpus):
    stream = Corpus.open(corpus).split("train")
    shard = stream.shards[1].path
    os.truncate(shard, shard.stat().st_size - 2)
    with pytest.raises(CorpusError, match=r"train-00001\.bin: has [\d,]+ tokens instead of [\d,]+: changed since"):
        stream.windows(np.array([stream.starts[1]]), 4)
    shard.unlink()
    with pytest.raises(CorpusError, match=r"train-00001\.bin: can't be read"):
        stream.windows(np.array([stream.starts[1]]), 4)


def test_tokens_that_the_vocabulary_has_not_are_noticed_before_a_model_sees_them(corpus):
    stream = Corpus.open(corpus).split("train")
    with stream.shards[0].path.open("rb+") as file:
        file.write(b"\xff\xff")
    with pytest.raises(CorpusError, match=r"holds the token 65535, its vocabulary has only 300: .*shoal doctor --corpus"):
        stream.windows(np.array([0]), 4)
    with pytest.raises(CorpusError, match="holds the token 65535"):
        stream.take(np.array([7, 0]))


def test_an_altered_shard_is_named_by_prepare_and_by_doctor(corpus, tmp_path):
    from shoal.commands import doctor

    assert doctor.run(doctor.Arguments(json=True, corpus=corpus), [])["works"]
    shard = corpus / "train-00001.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    data = Data(sources=[str(tmp_path / "text.jsonl")], shard_megabytes=0.02, held_out=0.2)
    for look in (
        lambda: prepare(data, Tokenizer(path=str(tmp_path / "bpe")), corpus),
        lambda: doctor.run(doctor.Arguments(json=True, corpus=corpus), []),
    ):
        with pytest.raises(CorpusError, match=r"train-00001\.bin: damaged \(its checksum differs.*prepare it anew"):
            look()


def test_a_disk_without_room_is_told_leaves_no_corpus_and_the_same_command_goes_on(tmp_path, prepared):
    source = write_jsonl(tmp_path / "text.jsonl", list(sentences(300)))
    expected = {path.name: path.read_bytes() for path in prepared(source, directory="expected").directory.iterdir()}
    with largest_file(9_000), pytest.raises(ShoalError, match=r"could not be written: File too large; make room there"):
        prepared(source)
    with pytest.raises(CorpusError, match="no finished corpus there"):
        Corpus.open(tmp_path / "corpus")
    assert not list((tmp_path / "corpus").glob(".*.tmp"))
    prepared(source)
    assert {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()} == expected


FULL = """
mount -t tmpfs -o size=200k tmpfs "$1" || exit 77
shift
"$@"
code=$?
ls -A "$0"
exit $code
"""


def test_a_disk_that_is_really_full_ends_prepare_with_one_line(tmp_path):
    (tmp_path / "disk").mkdir()
    source = write_jsonl(tmp_path / "text.jsonl", list(sentences(6000)))
    shoal = [sys.executable, "-m", "shoal", "prepare", "--data.sources", str(source), "--data.shard_megabytes", "0.05"]
    shoal += ["--data.directory", str(tmp_path / "disk" / "corpus"), "--tokenizer.vocabulary", "300"]
    space = ["unshare", "--mount", "--map-root-user", "--user"] if os.geteuid() else ["unshare", "--mount"]
    command = [*space, "sh", "-c", FULL, str(tmp_path / "disk" / "corpus"), str(tmp_path / "disk"), *shoal]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no disk can be mounted here")
    assert done.returncode == 1
    assert "could not be written: No space left on device; make room there" in done.stderr and "Traceback" not in done.stderr
    assert "manifest.json" not in done.stdout and "unit-00000.json" in done.stdout and ".tmp" not in done.stdout
