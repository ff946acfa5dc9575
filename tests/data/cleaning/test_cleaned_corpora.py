"""`prepare` with cleaning: the same corpus whatever the processes and interruptions, and an account of what was dropped."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from planted import WORDS, planted
from tests.core.limits import largest_file
from texts import words_of

from shoal.commands.prepare import Arguments, run
from shoal.core.errors import CorpusError, InputError, Interrupted, RecipeError, ShoalError
from shoal.core.files import read_json
from shoal.core.recipe import Clean, Data, Tokenizer
from shoal.data.cleaning import batches
from shoal.data.cleaning.batches import Cleaner, number_items
from shoal.data.prepare import prepare
from shoal.data.readers import Document

CLEAN = {"repair": True, "mask": ["email"], "exact": True, "near": True}


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path):
    texts, *_ = planted("en", WORDS["en"], 300)
    texts[7] += " write to fish@sea.org &amp; wait"
    texts[9] = " "
    return write(tmp_path / "text.jsonl", texts)


def make(source, directory, workers=1, clean=CLEAN, vocabulary=300, **data):
    settings = {"sources": [str(source)], "held_out": 0.1, "shard_megabytes": 0.1, **data}
    return prepare(Data(**settings, clean=Clean(**clean)), Tokenizer(vocabulary=vocabulary), directory, workers=workers)


def content_of(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_any_number_of_processes_makes_the_same_corpus_and_report(source, tmp_path, monkeypatch):
    alone = make(source, tmp_path / "alone")
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", 100_000)
    together = make(source, tmp_path / "together", workers=2)
    assert content_of(tmp_path / "together") == content_of(tmp_path / "alone")
    assert together.cleaning == alone.cleaning
    assert together.documents == alone.cleaning["kept_documents"] < 310
    assert {path.suffix for path in (tmp_path / "together").iterdir()} == {".bin", ".json", ".html"}


def test_an_interruption_keeps_cleaned_batches_and_the_next_run_goes_on(source, tmp_path, monkeypatch):
    make(source, tmp_path / "expected")
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", 50_000)
    cleaned, clean = [], Cleaner.clean

    def interrupted(self, batch):
        if len(cleaned) == 3:
            raise KeyboardInterrupt
        cleaned.append(batch.number)
        return clean(self, batch)

    monkeypatch.setattr(Cleaner, "clean", interrupted)
    with pytest.raises(Interrupted, match="3 cleaned batches and 0 finished units are kept"):
        make(source, tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"clean\.near is True there, False here"):
        make(source, tmp_path / "corpus", clean={**CLEAN, "near": False})
    monkeypatch.setattr(Cleaner, "clean", lambda self, batch: cleaned.append(batch.number) or clean(self, batch))
    (tmp_path / "corpus" / "cleaning" / "00001.text.parquet").write_bytes(b"rubbish")
    make(source, tmp_path / "corpus")
    assert cleaned[:5] == [0, 1, 2, 1, 3]
    assert content_of(tmp_path / "corpus") == content_of(tmp_path / "expected")


def test_a_run_that_was_cleaned_to_the_end_does_not_read_its_sources_again(source, tmp_path, monkeypatch):
    expected = make(source, tmp_path / "expected")
    monkeypatch.setattr("shoal.data.prepare._tokenizer", interrupt)
    with pytest.raises(Interrupted):
        make(source, tmp_path / "corpus")
    monkeypatch.undo()
    monkeypatch.setattr(Cleaner, "clean", interrupt)
    assert make(source, tmp_path / "corpus").cleaning == expected.cleaning


def test_what_was_left_out_is_told_though_a_run_went_on_after_cleaning(source, tmp_path, monkeypatch):
    source.write_bytes(source.read_bytes() + b"{broken\n" * 7)
    monkeypatch.setattr("shoal.data.prepare._tokenizer", interrupt)
    with pytest.raises(Interrupted):
        make(source, tmp_path / "corpus", on_error="skip")
    monkeypatch.undo()
    result = make(source, tmp_path / "corpus", on_error="skip")
    assert (result.left_out, len(result.faults)) == (7, 5)


def interrupt(*_):
    raise KeyboardInterrupt


def test_cleaned_text_may_become_other_tokens_than_was_asked_for_at_first(source, tmp_path, monkeypatch):
    expected = make(source, tmp_path / "expected")
    with pytest.raises(InputError, match=r"the text yields only \d+ tokens; use --tokenizer\.vocabulary"):
        make(source, tmp_path / "corpus", vocabulary=100_000)
    monkeypatch.setattr(Cleaner, "clean", interrupt)
    assert make(source, tmp_path / "corpus").cleaning == expected.cleaning
    assert content_of(tmp_path / "corpus") == content_of(tmp_path / "expected")


def test_a_corpus_cleaned_otherwise_is_refused_and_the_difference_named(source, tmp_path):
    make(source, tmp_path / "corpus")
    assert make(source, tmp_path / "corpus", clean={**CLEAN, "memory_megabytes": 9.0}).already
    with pytest.raises(CorpusError, match=r"another corpus: clean\.mask is \['email'\] there, \['phone'\] here\."):
        make(source, tmp_path / "corpus", clean={**CLEAN, "mask": ["phone"]})
    with pytest.raises(CorpusError, match="it is cleaned there, not cleaned here"):
        make(source, tmp_path / "corpus", clean={})


def test_a_corpus_of_nothing_says_which_stage_dropped_what_and_leaves_the_folder_free(source, tmp_path):
    with pytest.raises(CorpusError) as caught:
        make(source, tmp_path / "corpus", clean={"languages": ["zh"], "gopher": True, "language_confidence": 0.0})
    assert re.search(
        r"nothing is left after cleaning: of 330 documents, empty 1 \(empty 1\); language 329 \(other_language 329\) were "
        r"dropped\. Examples are in .*corpus-report\.html; switch a stage off or loosen it with data\.clean\.thresholds",
        str(caught.value),
    )
    assert "other_language, 329 documents" in (tmp_path / "corpus" / "corpus-report.html").read_text()
    assert make(source, tmp_path / "corpus", clean={}).documents > 100
    assert not (tmp_path / "corpus" / "corpus-report.html").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask": ["names"]}, "'names' is not known"),
        ({"gopher": True, "thresholds": {"words_lest": 5.0}}, "the nearest is 'words_least'"),
        ({"languages": ["EN"]}, "not a language's code"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_read(wrong, message, source, tmp_path):
    with pytest.raises(RecipeError, match=message):
        make(source, tmp_path / "corpus", clean=wrong, workers=2)


def test_planted_evaluation_text_is_found_and_removed_wherever_it_stands(tmp_path):
    texts, *_ = planted("en", WORDS["en"], 100)
    questions = [" ".join(words_of("en", 40, seed)) for seed in range(5)]
    write(tmp_path / "questions.jsonl", questions)
    for number, question in enumerate(questions):
        texts[10 * number] += " " + question
    texts[60] = "\n".join([texts[60]] * 200 + [questions[0].upper()])  # far behind its judged beginning
    source = write(tmp_path / "text.jsonl", texts)
    clean = {"decontaminate": [str(tmp_path / "questions.jsonl")], "judged_characters": 50_000}
    summary = make(source, tmp_path / "corpus", clean=clean).cleaning
    assert summary["stages"][-1]["stage"] == "decontaminate"
    assert summary["stages"][-1]["dropped"] == 6
    lost = sum(len(texts[number].encode()) for number in (0, 10, 20, 30, 40, 60))
    assert summary["stages"][-1]["dropped_bytes"] == lost
    assert summary["kept_bytes"] == summary["bytes"] - lost
    (tmp_path / "questions.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(CorpusError, match=r"clean\.evaluation_fingerprints"):
        make(source, tmp_path / "corpus", clean=clean)


@pytest.mark.parametrize("while_cleaning", [True, False], ids=["cleaning", "finding copies"])
def test_a_full_disk_is_told_and_cleaning_goes_on_when_there_is_room(while_cleaning, source, tmp_path, monkeypatch):
    if not while_cleaning:  # all batches are finished then
        monkeypatch.setattr("shoal.data.cleaning.clean._find_duplicates", interrupt)
        with pytest.raises(Interrupted):
            make(source, tmp_path / "corpus")
        monkeypatch.undo()
    with largest_file(1000), pytest.raises(ShoalError, match="could not be written: File too large"):
        make(source, tmp_path / "corpus")
    make(source, tmp_path / "corpus")
    make(source, tmp_path / "expected")
    assert content_of(tmp_path / "corpus") == content_of(tmp_path / "expected")


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.loads = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href")]


def test_the_report_loads_nothing_and_shows_texts_as_texts(tmp_path):
    texts, *_ = planted("en", WORDS["en"], 100)
    texts[3] = texts[5] = "<script src='https://evil.example'>alert(1)</script>" + texts[3]
    make(write(tmp_path / "<b>.jsonl", texts), tmp_path / "corpus")
    text = (tmp_path / "corpus" / "corpus-report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.loads == [] and not page.tags & {"script", "img", "link", "iframe", "b.jsonl"}
    assert "&lt;script src=" in text and "&lt;b&gt;.jsonl" in text


def test_numbers_go_into_the_manifest_and_what_the_verb_tells(source, tmp_path, capfd):
    keys = ["--data.sources", str(source), "--data.directory", str(tmp_path / "corpus"), "--tokenizer.vocabulary", "300"]
    keys += ["--data.held_out", "0.1", "--data.clean.preset", "text", "--data.clean.thresholds", "{zh: {words_least: 9}}"]
    result = run(Arguments(json=True, workers=1), keys)
    manifest = read_json(tmp_path / "corpus" / "manifest.json")
    assert json.loads(json.dumps(result))["cleaning"] == manifest["cleaning"]
    stages = {stage["stage"]: stage for stage in manifest["cleaning"]["stages"]}
    assert [*stages] == ["repair", "empty", "exact", "near"]
    assert stages["repair"]["changed"] == 1 and stages["empty"]["dropped"] == 1
    assert manifest["settings"]["clean"]["thresholds"] == {"zh": {"words_least": 9.0}}
    run(Arguments(), keys)
    assert re.search(r"cleaning kept \d+ of 330 documents, dropped by empty 1, exact 1\d, near 1\d", capfd.readouterr().err)


def test_progress_is_counted_in_bytes_whatever_the_script(tmp_path):
    texts, *_ = planted("zh", WORDS["zh"], 100)
    source, seen = write(tmp_path / "text.jsonl", texts), []
    data = Data(sources=[str(source)], held_out=0.1, clean=Clean(exact=True))
    result = prepare(data, Tokenizer(vocabulary=300), tmp_path / "corpus", seen.append, workers=1)
    assert max(now.bytes for now in seen if now.stage == "cleaning") == result.cleaning["bytes"]


def test_an_uncleaned_corpus_is_what_it_was(source, tmp_path):
    make(source, tmp_path / "corpus", clean={})
    manifest = read_json(tmp_path / "corpus" / "manifest.json")
    assert manifest["settings"]["clean"] is None and "cleaning" not in manifest
    assert {path.suffix for path in (tmp_path / "corpus").iterdir()} == {".bin", ".json", ".html"}


def test_enormous_documents_become_items_of_bounded_size_without_losing_a_character():
    pieces = ["line one\n" * 30, "x" * 250, "\nshort", ""]
    documents = [Document("a", piece, continues=piece != "") for piece in pieces] + [
        Document("b", "y" * 100),
        Document("c", ""),
    ]
    items = list(number_items(documents, 100))
    assert max(len(item.text) for item in items) <= 100
    assert ["".join(item.text for item in items if item.document == number) for number in range(3)] == [
        "".join(pieces),
        "y" * 100,
        "",
    ]
    heads = [item for item in items if item.head]
    assert [item.name for item in heads] == ["a", "b", "c"] and len(heads[0].text) == 99
    assert [item.continues for item in items[-3:]] == [False, False, False]


MEMORY = """
import resource, sys
from pathlib import Path
from shoal.core.recipe import Clean, Data, Tokenizer
from shoal.data.cleaning import batches
from shoal.data.prepare import prepare

batches.BATCH_CHARACTERS = 100_000
peaks = []
for source in sys.argv[1:3]:
    data = Data(sources=[source], shard_megabytes=0.2, clean=Clean(preset="text", memory_megabytes=0.5))
    prepare(data, Tokenizer(vocabulary=300, sample_bytes=100_000), Path(source).with_suffix(".corpus"), workers=1)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    sources = []
    for name, count in (("small", 400), ("large", 3500)):
        texts, *_ = planted("en", WORDS["en"], count)
        sources.append(write(tmp_path / f"{name}.jsonl", texts))
    command = [sys.executable, "-c", MEMORY, *map(str, sources)]
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert sources[1].stat().st_size > 4e6
    assert grown < 6
