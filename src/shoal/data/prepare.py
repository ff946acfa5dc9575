"""From sources to a corpus: read, (clean, deduplicate,) split, tokenize, write; with all cores, and as a stream.

One thread reads and hashes the text; others tokenize and write it. Going on after an interruption reads all text
again, which is fast, and tokenizes only what has no finished unit: nothing rests on where in a file a run stopped.

    sources ──► (cleaned source) ──► split_documents ──► pack_units ──► tokenize_units ──► manifest.json

What cleans (`data/cleaning/`) takes sources and gives one source of what it lets through; both the tokenizer's sample
and the corpus come from there, and its settings are part of the corpus's.
"""

import reprlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from shoal.core.errors import CorpusError, Interrupted
from shoal.core.files import read_json, sha256, sync_folder, write_json, write_text
from shoal.core.machine import cores
from shoal.core.recipe import Data
from shoal.core.recipe import Tokenizer as TokenizerChoice
from shoal.data.cleaning.clean import FOLDER, clean_settings, clean_sources, refuse_nothing
from shoal.data.cleaning.report import REPORT as CLEANING_REPORT
from shoal.data.cleaning.report import write_corpus_report
from shoal.data.cleaning.stages import is_on
from shoal.data.encoder import open_encoder
from shoal.data.shards import MANIFEST, SPLITS, VERSION, Corpus, Split, token_dtype
from shoal.data.sources import Source, open_sources
from shoal.data.tokenizer import Sample, TextTokenizer, build_char, read_tokenizer, sample_texts
from shoal.data.tokenizer_choice import TRAINERS, given_tokenizer, tokenizer_settings
from shoal.data.tokenizer_page import REPORT, tokenizer_page
from shoal.data.tokenizer_report import REPORT_BYTES, report_on
from shoal.data.units import Piece, pack_units, split_documents
from shoal.data.workers import Job, Record, tokenize_units, total

CLAIM = "preparing.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
AFTER_CLEANING = ("held_out", "held_out_by", "shard_megabytes", "tokenizer")
"""Settings that cleaned text doesn't depend on."""


@dataclass(frozen=True)
class Progress:
    """How far it is: `bytes` of text done in this stage, of about `total_bytes` (None: not known)."""

    stage: str
    bytes: int
    total_bytes: int | None
    tokens: int = 0


@dataclass(frozen=True)
class Prepared:
    """What was done.

    `seconds` is all of it; `megabytes_per_second` is text over the time of the tokenizing stage, from the first
    document to the manifest (0 when there was nothing to do). `skipped` counts files that are not UTF-8; `left_out` what
    else could not be used, and `faults` tells the first of it. `tokenizer` is the report on it.
    """

    directory: Path
    seconds: float
    bytes: int
    documents: int
    tokens: int
    held_out_tokens: int
    megabytes_per_second: float
    skipped: int
    resumed: bool
    already: bool
    left_out: int
    faults: list[str]
    tokenizer: dict[str, Any]
    cleaning: dict[str, Any] | None
    """What each stage kept and dropped (`cleaning.outcome.Outcome.summary`, without its examples)."""


Report = Callable[[Progress], None]


def prepare(
    data: Data, tokenizer: TokenizerChoice, directory: Path, progress: Report | None = None, workers: int | None = None
) -> Prepared:
    """Make the corpus that `data` and `tokenizer` describe in `directory`, or find it there.

    Raises `InputError` for sources that can't be used, `CorpusError` when the folder holds something else or a split
    would be empty, and `Interrupted` on SIGINT; finished units are kept then, and the same call goes on from there.
    """
    started = time.perf_counter()
    report = progress or (lambda _: None)
    sources = open_sources(data.sources, data.text_field, data.documents == "line", data.on_error)
    settings = _settings(data, tokenizer, sources)
    if (directory / MANIFEST).exists():
        corpus = Corpus.open(directory, verify=True)
        _refuse_other(directory, corpus.manifest["settings"], settings)
        return _prepared(corpus, time.perf_counter() - started, 0.0, sources, already=True)
    try:
        _claim(directory, settings)
        texts, cleaning = _clean(data, sources, directory, report, workers)
        text_tokenizer = _tokenizer(tokenizer, texts, directory, report)
        tokenizing = time.perf_counter()
        sample = Sample(REPORT_BYTES)
        records, resumed = _tokenize(data, texts, text_tokenizer, directory, report, workers, sample)
        corpus = _finish(directory, settings, text_tokenizer, records, sample, _left_out(sources), cleaning)
    except KeyboardInterrupt:
        finished = len(list(directory.glob("unit-*.json")))
        cleaned = len(list((directory / FOLDER).glob("[0-9]*.json")))
        kept = f"{cleaned} cleaned batches and {finished} finished units" if cleaned else f"{finished} finished units"
        raise Interrupted(f"{directory}: interrupted; {kept} are kept, the same command goes on from there") from None
    now = time.perf_counter()
    return replace(_prepared(corpus, now - started, now - tokenizing, sources), resumed=resumed)


def _settings(data: Data, tokenizer: TokenizerChoice, sources: Sequence[Source]) -> dict[str, Any]:
    """Everything that the corpus's content depends on."""
    return {
        "sources": [source.name for source in sources],
        "source_fingerprints": [source.fingerprint for source in sources],
        "text_field": data.text_field,
        "held_out": data.held_out,
        "held_out_by": data.held_out_by,
        "shard_megabytes": data.shard_megabytes,
        "tokenizer": tokenizer_settings(tokenizer),
        "documents": data.documents,
        "clean": clean_settings(data.clean, data.text_field) if is_on(data.clean) else None,
    }


def _refuse_other(directory: Path, there: dict[str, Any], here: dict[str, Any], ignore: str = "") -> None:
    there = {"documents": "file"} | there  # a corpus from before lines could be documents
    differing = [key for key in here if there.get(key) != here[key] and key != ignore]
    if not differing:
        return
    names = {key: f"{key} is {there.get(key)} there, {here[key]} here" for key in differing}
    names["source_fingerprints"] = "the sources' files have other names, sizes or times than then"
    names["tokenizer"] = _differing_keys("tokenizer", there.get("tokenizer", {}), here["tokenizer"])
    names["clean"] = _differing_cleaning(there.get("clean") or {}, here.get("clean") or {})
    raise CorpusError(
        f"{directory} holds another corpus: {'; '.join(names[key] for key in differing)}. "
        f"Choose another place with --data.directory OTHER, or delete {directory}"
    )


def _differing_cleaning(there: dict[str, Any], here: dict[str, Any]) -> str:
    if not there or not here:
        return f"it is {'cleaned' if there else 'not cleaned'} there, {'cleaned' if here else 'not cleaned'} here"
    return _differing_keys("clean", there, here)


def _differing_keys(section: str, there: dict[str, Any], here: dict[str, Any]) -> str:
    """Long values, as the special tokens of a task, are cut."""
    differing = [key for key in there | here if there.get(key) != here.get(key)]
    shown = {key: [reprlib.repr(settings.get(key)) for settings in (there, here)] for key in differing}
    return ", ".join(f"{section}.{key} is {then} there, {now} here" for key, (then, now) in shown.items())


def _claim(directory: Path, settings: dict[str, Any]) -> None:
    """Make the folder ours, or find that it is.

    Finished units of other settings are never given up. Sources may have changed: somebody mended a broken line.
    """
    claim = directory / CLAIM
    if claim.exists():
        there = read_json(claim)
        units = any(directory.glob("unit-*.json"))
        if units or any((directory / FOLDER).glob("*.json")):
            # text that is cleaned may become any tokens: a vocabulary was too large, say
            then = there if units else there | {key: settings[key] for key in AFTER_CLEANING}
            _refuse_other(directory, then, settings, ignore="source_fingerprints")
        for leftover in directory.glob(".*.tmp"):
            leftover.unlink()
        if there != settings:
            for name in (*TOKENIZER_FILES, REPORT, CLEANING_REPORT):
                (directory / name).unlink(missing_ok=True)
            write_json(claim, settings)
        return
    if directory.exists() and not directory.is_dir():
        raise CorpusError(f"{directory}: is a file; --data.directory names a folder")
    others = [path.name for path in directory.iterdir() if not path.name.startswith(".")] if directory.exists() else []
    if others:
        raise CorpusError(
            f"{directory}: holds other files ({', '.join(sorted(others)[:5])}); give --data.directory an empty folder"
        )
    write_json(claim, settings)


def _clean(
    data: Data, sources: Sequence[Source], directory: Path, report: Report, workers: int | None
) -> tuple[Sequence[Source], dict[str, Any] | None]:
    """What is kept of the sources, as sources again, and what was done; the report is written."""
    if not is_on(data.clean):
        return sources, None
    whole = _total_bytes(sources)

    def tell(stage: str, done: float) -> None:
        size = round(done if stage == "cleaning" else done * (whole or 0))
        report(Progress(stage, size, whole))

    texts, summary = clean_sources(data.clean, sources, data.text_field, directory, workers or cores(), tell)
    write_corpus_report(directory / CLEANING_REPORT, summary, [source.name for source in sources])
    refuse_nothing(summary, directory)
    stages = [{key: value for key, value in stage.items() if key != "examples"} for stage in summary["stages"]]
    return [texts], summary | {"stages": stages}


def _tokenizer(choice: TokenizerChoice, sources: Sequence[Source], directory: Path, report: Report) -> TextTokenizer:
    """The chosen tokenizer, trained if need be, and written to the corpus."""
    if (directory / TOKENIZER_FILES[-1]).exists():  # written last, so the other is there too
        return read_tokenizer(directory)
    if choice.path:
        tokenizer = given_tokenizer(choice)
    elif choice.kind == "char":
        characters: set[str] = set()
        for text in _reported_texts(sources, "reading characters", report):
            characters.update(text)
        tokenizer = build_char(characters, choice.special)
    else:
        sample = sample_texts(_reported_texts(sources, "sampling", report), choice.sample_bytes)
        tokenizer = TRAINERS[choice.kind](_reported_sample(sample, report), choice)
    tokenizer.write(directory)
    return tokenizer


def _reported_texts(sources: Sequence[Source], stage: str, report: Report) -> Iterator[str]:
    done, reported, whole = 0, 0, _total_bytes(sources)
    for document in chain.from_iterable(sources):
        yield document.text
        done += len(document.text.encode())
        if done - reported > 1_000_000:
            reported = done
            report(Progress(stage, done, whole))


def _reported_sample(sample: list[str], report: Report) -> Iterator[str]:
    """The sample, as the trainer takes it; how long it then needs to find its tokens can't be known."""
    done, whole = 0, sum(map(len, sample))
    for text in sample:
        report(Progress("training the tokenizer", done, whole))
        yield text
        done += len(text)
    report(Progress("choosing tokens", 0, None))


def _total_bytes(sources: Sequence[Source]) -> int | None:
    sizes = [source.bytes for source in sources]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _tokenize(
    data: Data,
    sources: Sequence[Source],
    tokenizer: TextTokenizer,
    directory: Path,
    report: Report,
    workers: int | None,
    sample: Sample,
) -> tuple[list[Record], bool]:
    """The records of all units, and whether any had been finished before; `sample` is filled with some of their text."""
    encode = open_encoder(tokenizer.library.to_str())
    job = Job(directory, encode, token_dtype(tokenizer.vocabulary), tokenizer.end_of_text)
    whole = _total_bytes(sources)
    size = max(1, round(data.shard_megabytes * 1_000_000))
    pieces = _sampled(split_documents(chain.from_iterable(sources), data.held_out, data.held_out_by), sample)
    records: list[Record] = []
    done = tokens = 0
    resumed = False
    units = pack_units(pieces, size, sha256(directory / TOKENIZER_FILES[0]))
    with closing(tokenize_units(units, job, workers or cores())) as finished:
        for unit, record, found in finished:
            records.append(record)
            resumed = resumed or found
            done += unit.bytes
            tokens += sum(part["tokens"] for part in record["splits"].values())
            report(Progress("tokenizing", done, whole, tokens))
    return records, resumed


def _sampled(pieces: Iterator[Piece], sample: Sample) -> Iterator[Piece]:
    for piece in pieces:
        sample.add(piece.text.decode())
        yield piece


def _left_out(sources: Sequence[Source]) -> dict[str, Any]:
    faults = [source.faults for source in sources]
    return {"count": sum(fault.count for fault in faults), "first": [text for fault in faults for text in fault.first]}


def _finish(
    directory: Path,
    settings: dict[str, Any],
    tokenizer: TextTokenizer,
    records: list[Record],
    sample: Sample,
    left_out: dict[str, Any],
    cleaning: dict[str, Any] | None,
) -> Corpus:
    splits = {split: total(records, split) for split in SPLITS}
    for split, numbers in splits.items():
        if not numbers["tokens"]:
            _remove_working_files(directory, keep=set())  # there is no such corpus; other settings may use the folder
            raise CorpusError(_empty_message(split, settings, splits))
    manifest: dict[str, Any] = {
        "version": VERSION,
        "dtype": token_dtype(tokenizer.vocabulary),
        "vocabulary": tokenizer.vocabulary,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer_sha256": sha256(directory / TOKENIZER_FILES[0]),
        "settings": settings,
        "splits": splits,
        "left_out": left_out,
        **({"cleaning": cleaning} if cleaning else {}),
    }
    manifest["tokenizer"] = report_on(tokenizer, sample.texts, Corpus(directory, manifest))
    write_text(directory / REPORT, tokenizer_page(manifest["tokenizer"]))
    sync_folder(directory)
    write_json(directory / MANIFEST, manifest)
    sync_folder(directory)
    _remove_working_files(directory, keep={file["name"] for numbers in splits.values() for file in numbers["files"]})
    (directory / CLAIM).unlink()
    return Corpus.open(directory)


def _empty_message(split: Split, settings: dict[str, Any], splits: dict[Split, Record]) -> str:
    documents = sum(numbers["documents"] for numbers in splits.values())
    if settings["held_out_by"] == "tail":
        return f"the split '{split}' would be empty: the text is too short for held_out {settings['held_out']}"
    return (
        f"the split '{split}' would be empty: of {documents} documents, whole ones are held out. "
        "Hold out the end of every document with --data.held_out_by tail, or another share with --data.held_out"
    )


def _remove_working_files(directory: Path, keep: set[str]) -> None:
    """Remove cleaned text, the records of units, and shards that an earlier run left and this one had no use for."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)
    shards = [path for split in SPLITS for path in directory.glob(f"{split}-*.bin")]
    for path in (*directory.glob("unit-*.json"), *shards):
        if path.name not in keep:
            path.unlink()


def _prepared(
    corpus: Corpus, seconds: float, tokenizing: float, sources: Sequence[Source], already: bool = False
) -> Prepared:
    train, held_out = (corpus.split(split) for split in SPLITS)
    size = train.bytes + held_out.bytes
    by_tail = corpus.manifest.get("held_out_by") == "tail"
    return Prepared(
        directory=corpus.directory,
        seconds=seconds,
        bytes=size,
        # with ends held out, a document is in both
        documents=max(train.documents, held_out.documents) if by_tail else train.documents + held_out.documents,
        tokens=train.tokens,
        held_out_tokens=held_out.tokens,
        megabytes_per_second=size / 1e6 / tokenizing if tokenizing else 0.0,
        skipped=sum(len(source.skipped) for source in sources),
        resumed=False,
        already=already,
        left_out=corpus.manifest.get("left_out", {}).get("count", 0),
        faults=corpus.manifest.get("left_out", {}).get("first", []),
        tokenizer=corpus.manifest.get("tokenizer", {}),
        cleaning=corpus.manifest.get("cleaning"),
    )
