"""Processes that turn units of text into shard files, each unit whole or not at all.

Processes, as Python's own part of the work holds the interpreter's lock; started fresh ("spawn"), as a forked copy of a
process that runs torch threads may hang. A worker imports no torch and is ready in 0.3 s. It never sees SIGINT, which a
terminal sends to all of them, and ends by itself when its parent is gone, however that ended.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError, ShoalError
from shoal.core.files import read_json, sha256, write_bytes, write_json
from shoal.data.encoder import Encode, open_encoder
from shoal.data.shards import SPLITS, Split, shard_name
from shoal.data.units import Piece, Unit

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What every unit of a corpus has in common."""

    directory: Path
    dtype: str
    end_of_text: int

    def record_path(self, number: int) -> Path:
        """Where a finished unit says what it holds, until the manifest does."""
        return self.directory / f"unit-{number:05}.json"

    def finished(self, unit: Unit) -> Record | None:
        """The record of a unit that an earlier run finished, if it was this one and its files are whole."""
        path = self.record_path(unit.number)
        if not path.exists():
            return None
        try:
            record: Record = read_json(path)
        except InputError:
            return None
        files = [(self.directory / part["name"], part["sha256"]) for part in record["splits"].values()]
        same = record["unit"] == unit.fingerprint
        return record if same and all(file.exists() and sha256(file) == whole for file, whole in files) else None


def tokenize_units(units: Iterable[Unit], job: Job, workers: int) -> Generator[tuple[Unit, Record, bool]]:
    """Tokenize units, or find them finished: (unit, record, whether it was found), in no particular order.

    At most `workers + 2` units are in memory. With one worker the work is done in this process.
    """
    if workers == 1:
        encode = open_encoder((job.directory / "tokenizer.json").read_text(encoding="utf-8"))
        for unit in units:
            found = job.finished(unit)
            yield unit, found or _write_unit(unit, job, encode), found is not None
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (job, stop))
    try:
        yield from _through_pool(units, job, pool, workers + 2)
    except BrokenProcessPool:
        raise ShoalError(
            "a worker process died (out of memory?); finished units are kept, try again with fewer: --workers 1"
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _through_pool(
    units: Iterable[Unit], job: Job, pool: ProcessPoolExecutor, limit: int
) -> Iterator[tuple[Unit, Record, bool]]:
    waiting: deque[tuple[Unit, Future[Record]]] = deque()
    for unit in units:
        found = job.finished(unit)
        if found:
            yield unit, found, True
            continue
        if len(waiting) == limit:
            earlier, future = waiting.popleft()
            yield earlier, future.result(), False
        waiting.append((unit, _submit(pool, unit)))
    for earlier, future in waiting:
        yield earlier, future.result(), False


def _submit(pool: ProcessPoolExecutor, unit: Unit) -> "Future[Record]":
    """Hand a unit to the pool, which starts a process now and then: a new one inherits that SIGINT is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_work, unit)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Worker:
    job: Job
    stop: Event
    encode: Encode


_worker: _Worker | None = None


def _start_worker(job: Job, stop: Event) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(job, stop, open_encoder((job.directory / "tokenizer.json").read_text(encoding="utf-8")))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(unit: Unit) -> Record:
    if _worker is None:
        raise RuntimeError("the pool runs its initializer first")
    if _worker.stop.is_set():
        raise ShoalError("stopped")
    return _write_unit(unit, _worker.job, _worker.encode)


def _write_unit(unit: Unit, job: Job, encode: Encode) -> Record:
    """Write a unit's shard files, and then its record."""
    splits = {}
    for split in SPLITS:
        pieces = [piece for piece in unit.pieces if piece.split == split]
        if pieces:
            splits[split] = _write_shard(job, shard_name(split, unit.number), pieces, encode)
    record = {"unit": unit.fingerprint, "splits": splits}
    write_json(job.record_path(unit.number), record)
    return record


def _write_shard(job: Job, name: str, pieces: list[Piece], encode: Encode) -> Record:
    end = np.array([job.end_of_text], dtype=np.uint32)
    parts: list[NDArray[np.uint32]] = []
    for piece in pieces:
        if piece.text:
            parts.append(encode(piece.text))
        if piece.ends:
            parts.append(end)
    tokens = np.concatenate(parts).astype(job.dtype)
    write_bytes(job.directory / name, tokens.tobytes())
    return {
        "name": name,
        "tokens": len(tokens),
        "documents": sum(piece.ends for piece in pieces),
        "bytes": sum(len(piece.text) for piece in pieces),
        "sha256": sha256(job.directory / name),
    }


def total(records: Iterable[Record], split: Split) -> Record:
    """A split's numbers over all units, and its files in order."""
    parts = sorted(
        (record["splits"][split] for record in records if split in record["splits"]), key=lambda part: part["name"]
    )
    sums: Counter[str] = Counter()
    for part in parts:
        sums.update({key: part[key] for key in ("tokens", "documents", "bytes")})
    files = [{key: part[key] for key in ("name", "tokens", "sha256")} for part in parts]
    return {"tokens": sums["tokens"], "documents": sums["documents"], "bytes": sums["bytes"], "files": files}
