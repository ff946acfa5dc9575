"""`prepare`: every text once, split as asked, resumable to the byte, bounded in memory, and never over another corpus."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corpora import sentences, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as some

from shoal.commands.prepare import Arguments, run
from shoal.core.errors import CorpusError, InputError, Interrupted
from shoal.core.recipe import Data, Tokenizer
from shoal.data import workers
from shoal.data.prepare import prepare
from shoal.data.readers import Document
from shoal.data.shards import SPLITS, Corpus
from shoal.data.tokenizer import read_tokenizer
from shoal.data.units import split_documents


def documents_of(directory: Path, split: str) -> list[str]:
    """The texts that a split decodes to."""
    corpus = Corpus.open(directory, verify=True)
    stream = corpus.split(split)
    ids = stream.windows(np.array([0]), stream.tokens)[0]
    ends = np.flatnonzero(ids == corpus.end_of_text)
    assert ends[-1] == len(ids) - 1
    tokenizer = read_tokenizer(directory)
    parts = [tokenizer.decode(part[:-1]) for part in np.split(ids, ends + 1)[:-1]]
    assert len(parts) == stream.documents
    assert sum(len(part.encode()) for part in parts) == stream.bytes
    return parts


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "text.jsonl", list(sentences(400)))


def test_every_document_is_in_exactly_one_split_in_order(prepared, source):
    result = prepared(source)
    train, held_out = (documents_of(result.directory, split) for split in SPLITS)
    whole = list(sentences(400))
    assert [text for text in whole if text in set(train)] == train
    assert [text for text in whole if text in set(held_out)] == held_out
    assert len(train) + len(held_out) == result.documents == 400
    assert 0.1 < len(held_out) / 400 < 0.3
    assert len(Corpus.open(result.directory).split("train").shards) > 3
    assert {path.suffix for path in result.directory.iterdir()} == {".bin", ".json", ".html"}


def test_which_documents_are_held_out_depends_on_their_text_alone(prepared, source, tmp_path):
    first = documents_of(prepared(source).directory, "held_out")
    other = write_jsonl(tmp_path / "other.jsonl", [*sentences(100, seed=3), *reversed(list(sentences(400)))])
    second = documents_of(prepared(other, directory="other").directory, "held_out")
    assert set(first) <= set(second)


def test_the_tail_of_a_text_is_held_out_as_nanogpt_splits_it(tmp_path):
    text = "".join(sentences(3000))[:1_115_394]
    (tmp_path / "text.txt").write_text(text)
    data = Data(sources=[str(tmp_path / "text.txt")], held_out=0.1, held_out_by="tail")
    result = prepare(data, Tokenizer(kind="char"), tmp_path / "corpus")
    assert documents_of(result.directory, "train") == [text[: int(len(text) * 0.9)]]
    assert documents_of(result.directory, "held_out") == [text[int(len(text) * 0.9) :]]
    assert result.tokens == int(len(text) * 0.9) + 1


@settings(max_examples=200, deadline=None)
@given(
    texts=some.lists(some.lists(some.text("abc\n", max_size=20), min_size=1, max_size=5), max_size=4),
    share=some.sampled_from([0.02, 0.1, 0.5, 0.9]),
)
def test_tails_are_exact_for_documents_that_come_in_pieces(texts, share):
    documents = [
        Document("", text, continues=index < len(pieces) - 1) for pieces in texts for index, text in enumerate(pieces)
    ]
    found = {split: [""] for split in SPLITS}
    for piece in split_documents(documents, share, "tail"):
        found[piece.split][-1] += piece.text.decode()
        if piece.ends:
            found[piece.split].append("")
    whole = ["".join(pieces) for pieces in texts]
    cuts = [int(len(text) * (1 - share)) for text in whole]
    assert found["train"][:-1] == [text[:cut] for text, cut in zip(whole, cuts, strict=True) if text[:cut]]
    assert found["held_out"][:-1] == [text[cut:] for text, cut in zip(whole, cuts, strict=True) if text[cut:]]


def test_pieces_of_a_document_stay_together_without_an_end_between_them():
    pieces = [Document("", "a", True), Document("", "b", True), Document("", "c"), Document("", ""), Document("", "d")]
    split = list(split_documents(pieces, 0.5, "document"))
    assert [(piece.text, piece.ends) for piece in split] == [(b"a", False), (b"b", False), (b"c", True), (b"d", True)]
    assert len({piece.split for piece in split[:3]}) == 1


def test_the_same_corpus_again_returns_at_once(prepared, source):
    first = prepared(source)
    before = content_of(first.directory)
    again = prepared(source)
    assert (first.already, again.already) == (False, True)
    assert (again.tokens, again.held_out_tokens, again.bytes) == (first.tokens, first.held_out_tokens, first.bytes)
    assert content_of(first.directory) == before


def test_any_number_of_workers_gives_the_same_bytes(source, tmp_path):
    data = Data(sources=[str(source)], shard_megabytes=0.01)
    for count in (1, 3):
        prepare(data, Tokenizer(vocabulary=300), tmp_path / str(count), workers=count)
    assert content_of(tmp_path / "1") == content_of(tmp_path / "3")


def test_another_corpus_is_refused_and_the_difference_named(prepared, source):
    before = content_of(prepared(source).directory)
    with pytest.raises(CorpusError, match=r"another corpus: held_out is 0\.2 there, 0\.3 here\. .*--data\.directory OTHER"):
        prepared(source, held_out=0.3)
    source.write_text(source.read_text() + '{"text": "more"}\n')
    with pytest.raises(CorpusError, match="the sources' files have other names, sizes or times"):
        prepared(source)
    assert content_of(source.parent / "corpus") == before


def test_a_corpus_of_lines_is_another_one_than_of_files_in_both_directions(prepared, tmp_path):
    (tmp_path / "text.txt").write_text("".join(sentences(100)))
    keys = {"held_out": 0.5, "held_out_by": "tail"}
    for first, second in (("line", "file"), ("file", "line")):
        assert not prepared(tmp_path / "text.txt", directory=first, documents=first, **keys).already
        with pytest.raises(CorpusError, match=f"documents is {first} there, {second} here"):
            prepared(tmp_path / "text.txt", directory=first, documents=second, **keys)


def test_another_tokenizer_is_refused(prepared, source):
    directory = prepared(source).directory
    data = Data(sources=[str(source)], shard_megabytes=0.02, held_out=0.2)
    with pytest.raises(
        CorpusError, match=r"tokenizer\.fingerprint is '.*' there, None here, .*kind is None there, 'char' here"
    ):
        prepare(data, Tokenizer(kind="char"), directory)
    other = directory.with_name("char")
    prepare(data, Tokenizer(kind="char"), other)
    with pytest.raises(CorpusError, match=r"tokenizer\.special is None there, \['<\|0\|>', .*'<\|5\|>', \.\.\.\] here\."):
        prepare(data, Tokenizer(kind="char", special=[f"<|{number}|>" for number in range(100)]), other)


def test_a_folder_with_other_files_is_refused(prepared, source, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.tex").write_text("precious")
    with pytest.raises(CorpusError, match=r"holds other files \(thesis\.tex\)"):
        prepared(source)
    with pytest.raises(CorpusError, match="is a file"):
        prepared(source, directory="text.jsonl")


def test_an_empty_split_says_what_to_do_and_leaves_the_folder_free(prepared, tmp_path):
    (tmp_path / "one.txt").write_text("Only one document. " * 50)
    with pytest.raises(CorpusError, match=r"'held_out' would be empty: of 1 documents.*--data\.held_out_by tail"):
        prepared(tmp_path / "one.txt", held_out=0.01)
    assert prepared(tmp_path / "one.txt", held_out=0.01, held_out_by="tail").held_out_tokens > 1


def test_a_mended_source_goes_on_after_an_error(prepared, source):
    whole = source.read_text()
    source.write_text(whole + "{broken\n")
    with pytest.raises(InputError, match=r"text\.jsonl:401: not valid JSON"):
        prepared(source)
    source.write_text(whole)
    result = prepared(source)
    assert result.resumed
    assert len(documents_of(result.directory, "train")) + len(documents_of(result.directory, "held_out")) == 400


def test_an_unfinished_corpus_of_other_settings_is_refused_too(prepared, source):
    source.write_text(source.read_text() + "{broken\n")
    with pytest.raises(InputError):
        prepared(source)
    with pytest.raises(CorpusError, match=r"held_out is 0\.2 there, 0\.5 here"):
        prepared(source, held_out=0.5)


def test_an_interruption_keeps_finished_units_and_the_next_run_goes_on(prepared, source, monkeypatch):
    expected = content_of(prepared(source, directory="expected").directory)
    calls = iter(range(100))
    write = workers._write_unit

    def interrupted(unit, job):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return write(unit, job)

    monkeypatch.setattr(workers, "_write_unit", interrupted)
    with pytest.raises(Interrupted, match=r"[1-9] finished units are kept"):
        prepared(source)
    with pytest.raises(CorpusError, match="no finished corpus there"):
        Corpus.open(source.parent / "corpus")
    monkeypatch.undo()
    result = prepared(source)
    assert result.resumed
    assert content_of(result.directory) == expected


SLOW = """
import signal, sys, time
from pathlib import Path
from shoal.core.recipe import Data, Tokenizer
from shoal.data import workers
from shoal.data.prepare import prepare

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
write = workers._write_unit
workers._write_unit = lambda unit, job: (time.sleep(0.15), write(unit, job))[1]
if __name__ == "__main__":
    data = Data(sources=[sys.argv[1]], shard_megabytes=0.005)
    prepare(data, Tokenizer(vocabulary=300), Path(sys.argv[2]), workers=2)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_run_stopped_in_the_middle_goes_on_to_the_same_bytes(sent, source, tmp_path):
    data, tokenizer = Data(sources=[str(source)], shard_megabytes=0.005), Tokenizer(vocabulary=300)
    prepare(data, tokenizer, tmp_path / "expected")
    (tmp_path / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "slow.py"), str(source), str(tmp_path / "corpus")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "corpus").glob("unit-*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    begin = time.monotonic()
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert process.returncode != 0
    assert sent == signal.SIGKILL or "finished units are kept" in error
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "corpus").glob("*.bin")}
    assert len(finished) > 0 and not (tmp_path / "corpus" / "manifest.json").exists()
    (tmp_path / "corpus" / ".train-00099.bin.1.tmp").write_bytes(b"half")
    result = prepare(data, tokenizer, tmp_path / "corpus")
    assert result.resumed
    assert content_of(tmp_path / "corpus") == content_of(tmp_path / "expected")
    kept = [name for name, time_ns in finished.items() if (tmp_path / "corpus" / name).stat().st_mtime_ns == time_ns]
    assert len(kept) >= 4


def test_a_unit_whose_file_was_damaged_meanwhile_is_done_again(prepared, source, tmp_path):
    expected = content_of(prepared(source, directory="expected").directory)
    whole = source.read_text()
    source.write_text(whole + "{broken\n")
    with pytest.raises(InputError):
        prepared(source)
    (tmp_path / "corpus" / "train-00000.bin").write_bytes(b"rubbish")
    source.write_text(whole)
    prepared(source)
    found = content_of(tmp_path / "corpus")
    assert {name for name in expected if found[name] != expected[name]} <= {"manifest.json"}  # the source's new time


MEMORY = """
import resource, sys
from pathlib import Path
from shoal.core.recipe import Data, Tokenizer
from shoal.data.prepare import prepare

peaks = []
for source in sys.argv[1:3]:
    data = Data(sources=[source], shard_megabytes=1.0)
    prepare(data, Tokenizer(vocabulary=300, sample_bytes=500_000), Path(source).with_suffix(".corpus"), workers=2)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    block = list(sentences(4000))
    write_jsonl(tmp_path / "small.jsonl", block * 5)
    write_jsonl(tmp_path / "large.jsonl", block * 25)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small.jsonl"), str(tmp_path / "large.jsonl")]
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (tmp_path / "large.jsonl").stat().st_size > 20e6
    assert grown < 12


def test_progress_tells_the_stages_and_ends_with_all_text(source, tmp_path):
    seen = []
    data = Data(sources=[str(source)], shard_megabytes=0.02)
    result = prepare(data, Tokenizer(vocabulary=300), tmp_path / "corpus", seen.append)
    assert [*dict.fromkeys(now.stage for now in seen)] == ["training the tokenizer", "choosing tokens", "tokenizing"]
    assert seen[-1].bytes == result.bytes
    assert seen[-1].tokens == result.tokens + result.held_out_tokens


def test_the_verb_returns_one_json_object_and_tells_a_person_on_stderr(source, tmp_path, capfd):
    keys = ["--data.sources", str(source), "--data.directory", str(tmp_path / "corpus"), "--tokenizer.vocabulary", "300"]
    result = run(Arguments(json=True, workers=1), keys)
    assert capfd.readouterr() == ("", "")
    assert json.loads(json.dumps(result))["vocabulary"] == 300
    assert result["directory"] == str(tmp_path / "corpus")
    again = run(Arguments(), keys)
    out, error = capfd.readouterr()
    assert out == "" and "already holds this corpus" in error
    assert again["already"] and again["tokens"] == result["tokens"]
