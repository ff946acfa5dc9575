"""Threads that turn units of text into shard files, each unit whole or not at all.

Threads are enough: `tokenizers` (Rust), hashing and writing let go of the interpreter's lock, so they fill all cores;
what keeps the lock is either fast (40 MB/s and more, reading included) or Python's own reading of the sources, which no
number of workers would speed up. In return nothing is copied between processes, and none can be left behind.
"""

import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError, ShoalError
from shoal.core.files import read_json, sha256, write_bytes, write_json
from shoal.data.encoder import Encode
from shoal.data.shards import SPLITS, Split, shard_name
from shoal.data.units import Piece, Unit

Record = dict[str, Any]

TOGETHER = 100


@dataclass(frozen=True)
class Job:
    """What every unit of a corpus has in common. `stop` ends units that are under way, unfinished."""

    directory: Path
    encode: Encode
    dtype: str
    end_of_text: int
    stop: threading.Event = field(default_factory=threading.Event)

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

    At most `workers + 2` units are in memory.
    """
    waiting: deque[tuple[Unit, Future[Record]]] = deque()
    pool = ThreadPoolExecutor(workers, "tokenize")
    try:
        for unit in units:
            found = job.finished(unit)
            if found:
                yield unit, found, True
                continue
            if len(waiting) > workers:
                earlier, future = waiting.popleft()
                yield earlier, future.result(), False
            waiting.append((unit, pool.submit(_write_unit, unit, job)))
        while waiting:
            earlier, future = waiting.popleft()
            yield earlier, future.result(), False
    finally:
        job.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _write_unit(unit: Unit, job: Job) -> Record:
    """Write a unit's shard files, and then its record."""
    splits = {}
    for split in SPLITS:
        pieces = [piece for piece in unit.pieces if piece.split == split]
        if pieces:
            splits[split] = _write_shard(job, shard_name(split, unit.number), pieces)
    record = {"unit": unit.fingerprint, "splits": splits}
    write_json(job.record_path(unit.number), record)
    return record


def _write_shard(job: Job, name: str, pieces: list[Piece]) -> Record:
    end = np.array([job.end_of_text], dtype=np.uint32)
    parts: list[NDArray[np.uint32]] = []
    for start in range(0, len(pieces), TOGETHER):
        if job.stop.is_set():
            raise ShoalError("stopped")
        group = pieces[start : start + TOGETHER]
        for piece, ids in zip(group, job.encode([piece.text for piece in group]), strict=True):
            parts += [ids, end] if piece.ends else [ids]
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
