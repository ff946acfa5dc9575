"""Cleaning as a whole: sources in, one source of kept documents out, with what happened to the others.

Each text is cleaned once, in a process of its batch, and kept compressed in the corpus's folder until the corpus is
written; the tokenizer's sample and the corpus are read from there. An interrupted run finds its finished batches again.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import CorpusError, InputError, ShoalError
from shoal.core.files import make_folder, read_json, write_bytes, write_json
from shoal.core.recipe import Clean
from shoal.data.cleaning.batches import Batch, Cleaner, Record, number_items, pack_batches, settings_hash
from shoal.data.cleaning.contamination import Index, build_index
from shoal.data.cleaning.duplicates import KEPT, mark_exact, mark_near
from shoal.data.cleaning.outcome import Outcome
from shoal.data.cleaning.signatures import Signer
from shoal.data.cleaning.spool import pack_array, read_texts
from shoal.data.cleaning.stages import names, open_stages, resolve
from shoal.data.readers import Document
from shoal.data.sources import Source, open_sources

FOLDER = "cleaning"
FINISHED = "finished.json"
MARKS = "marks.npy"
VERSION = 1
"""Of what the stages do: another one cleans anew."""

Report = Callable[[str, float], None]
"""Called with a stage's name and how much text is done: bytes while cleaning, then a share."""


def clean_settings(clean: Clean, text_field: str) -> dict[str, Any]:
    """Everything that the kept text depends on, beside the sources."""
    settings = asdict(cast(Any, resolve(clean)))
    del settings["memory_megabytes"], settings["preset"]
    evaluation = open_sources(clean.decontaminate, text_field) if clean.decontaminate else []
    fingerprints = [source.fingerprint for source in evaluation]
    return settings | {"evaluation_fingerprints": fingerprints, "version": VERSION}


def clean_sources(
    clean: Clean, sources: Sequence[Source], text_field: str, directory: Path, workers: int, report: Report
) -> tuple[Source, dict[str, Any]]:
    """What is kept of the sources, as a source; and the numbers and examples of what was done (`Outcome.summary`).

    Raises `RecipeError` for settings that the stages don't know.
    """
    clean = resolve(clean)
    folder = directory / FOLDER
    make_folder(folder)
    key = settings_hash([clean_settings(clean, text_field), [source.fingerprint for source in sources]])
    finished = _read_finished(folder, key)
    if finished is None:
        outcome = _clean(clean, sources, text_field, folder, workers, report)
        marks = _find_duplicates(clean, outcome, folder, report)
        faults = [[source.faults.count, source.faults.first] for source in sources]
        finished = {"key": key, "batches": len(outcome.rows), "summary": outcome.summary(), "faults": faults}
        if not finished["summary"]["kept_documents"]:
            return _kept_source(folder, finished, marks), finished["summary"]
        write_bytes(folder / MARKS, pack_array(marks))
        write_json(folder / FINISHED, finished)
    for source, fault in zip(sources, finished["faults"], strict=True):
        source.faults.recall(*fault)
    marks = np.load(folder / MARKS, allow_pickle=False)
    return _kept_source(folder, finished, marks), finished["summary"]


def refuse_nothing(summary: dict[str, Any], directory: Path) -> None:
    """Raise `CorpusError` that says which stage dropped what, if nothing is left; the batches are of no more use then."""
    if summary["kept_documents"]:
        return
    shutil.rmtree(directory / FOLDER, ignore_errors=True)
    said = []
    for stage in summary["stages"]:
        if stage["dropped"]:
            rules = ", ".join(f"{rule} {numbers[0]:,}" for rule, numbers in stage["rules"].items())
            said.append(f"{stage['stage']} {stage['dropped']:,} ({rules})")
    raise CorpusError(
        f"nothing is left after cleaning: of {summary['documents']:,} documents, {'; '.join(said)} were dropped. "
        f"Examples are in {directory / 'corpus-report.html'}; switch a stage off or loosen it with data.clean.thresholds"
    )


def _read_finished(folder: Path, key: str) -> dict[str, Any] | None:
    try:
        finished = read_json(folder / FINISHED)
    except InputError:
        return None
    return finished if finished["key"] == key and (folder / MARKS).exists() else None


def _clean(clean: Clean, sources: Sequence[Source], text_field: str, folder: Path, workers: int, report: Report) -> Outcome:
    """Clean all batches that are not finished yet."""
    settings = clean_settings(clean, text_field)
    index: Index = {}
    if clean.decontaminate:
        index = build_index(document.text for document in chain.from_iterable(open_sources(clean.decontaminate, text_field)))
        if not index:
            raise InputError("data.clean.decontaminate: no text there has the 8 words that are needed to find it again")
    items = number_items(chain.from_iterable(sources), clean.judged_characters)
    batches = pack_batches(items, settings_hash(settings))
    outcome = Outcome(names(clean))
    done = 0
    with closing(_clean_batches(batches, clean, folder, index, workers)) as records:
        for record in records:
            outcome.add(record)
            done += record["bytes"]
            report("cleaning", done)
    return outcome


def _clean_batches(batches: Iterable[Batch], clean: Clean, folder: Path, index: Index, workers: int) -> Generator[Record]:
    """Clean batches, or find them finished, in order; `workers + 2` are in memory at most."""
    cleaner = _open_cleaner(clean, folder, index)
    if workers == 1:
        for batch in batches:
            yield cleaner.finished(batch) or cleaner.clean(batch)
        return
    waiting: deque[Future[Record] | Record] = deque()
    # spawned, as this process has threads, which forks of it would not have
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(clean, folder, index)
    )
    try:
        for batch in batches:
            if len(waiting) > workers:
                yield _result(waiting.popleft())
            waiting.append(cleaner.finished(batch) or pool.submit(_clean_batch, batch))
        while waiting:
            yield _result(waiting.popleft())
    except BrokenProcessPool:
        raise ShoalError(
            "a process that cleaned text was ended, perhaps for lack of memory; "
            "finished batches are kept: the same command goes on, with fewer processes by --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(record: Future[Record] | Record) -> Record:
    return record.result() if isinstance(record, Future) else record


def _open_cleaner(clean: Clean, folder: Path, index: Index) -> Cleaner:
    signer = Signer(clean.near_shingle, clean.near_bands if clean.near else 0, clean.near_rows)
    return Cleaner(folder, list(open_stages(clean, index)), signer)


_cleaner: Cleaner | None = None
"""Of a worker process: what it was started with."""


def _start_worker(clean: Clean, folder: Path, index: Index) -> None:
    global _cleaner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _cleaner = _open_cleaner(clean, folder, index)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _clean_batch(batch: Batch) -> Record:
    assert _cleaner is not None
    return _cleaner.clean(batch)


def _find_duplicates(clean: Clean, outcome: Outcome, folder: Path, report: Report) -> NDArray[np.uint8]:
    """Why each kept row is dropped after all; 0: it is not."""
    signatures = outcome.signatures(folder)
    marks = outcome.marks()
    memory = round(clean.memory_megabytes * 1e6)
    if clean.exact:
        pairs = mark_exact(signatures, marks, memory, lambda share: report("finding exact duplicates", share))
        outcome.show_pairs(folder, "exact", pairs)
    if clean.near:
        pairs = mark_near(
            signatures, clean.near_bands, clean.near_similarity, marks, memory,
            lambda share: report("finding near-duplicates", share),
        )  # fmt: skip
        outcome.show_pairs(folder, "near", pairs)
    outcome.count(signatures, marks)
    return marks


def _kept_source(folder: Path, finished: dict[str, Any], marks: NDArray[np.uint8]) -> Source:
    def read() -> Iterator[Document]:
        row, document = 0, -1
        for batch in range(finished["batches"]):
            for item in read_texts(folder / f"{batch:05}.text.parquet"):
                if item.head:
                    document = item.document if marks[row] == KEPT else -1
                    row += 1
                if item.document == document:
                    yield Document(item.name, item.text, item.continues)

    return Source("cleaned text", finished["key"], finished["summary"]["kept_bytes"], read)
