"""Batches of documents: what a process cleans at a time, and what an interruption can lose.

A batch depends on the documents and the settings alone. What it leaves in the folder `cleaning`: the kept text, compressed;
a row of hashes for each kept document; and, last, a record of what was done, with the batch's hash and its files'.
A batch whose record and files are there is not cleaned again.

A document is judged by its first `judged_characters` and kept or dropped as a whole; what follows comes in further
items, is mended and masked, and searched for evaluation texts, but not judged. So memory does not grow with a document.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shoal.core.errors import InputError
from shoal.core.files import read_json, sha256, write_bytes, write_json
from shoal.data.cleaning.draft import Draft, Dropped, Hashes, Stage
from shoal.data.cleaning.signatures import Signer, hash_text
from shoal.data.cleaning.spool import Item, pack_array, pack_texts
from shoal.data.cleaning.stages import Entry
from shoal.data.readers import Document
from shoal.data.units import grouped

BATCH_CHARACTERS = 4_000_000
EXAMPLES = 3
SHOWN = 240

Record = dict[str, Any]


class Batch(NamedTuple):
    """Items that are cleaned in one go, and a hash of them and of the settings."""

    number: int
    items: list[Item]
    fingerprint: str


def number_items(documents: Iterable[Document], judged: int) -> Iterator[Item]:
    """Documents as items of `judged` characters at most, cut at line ends where there are any."""
    number, head, waiting = 0, True, ""
    for document in documents:
        waiting += document.text
        start = 0
        while len(waiting) - start > judged:
            cut = waiting.rfind("\n", start, start + judged) + 1 or start + judged
            yield Item(number, document.name, waiting[start:cut], head, True)
            start, head = cut, False
        waiting = waiting[start:]
        if not document.continues:
            yield Item(number, document.name, waiting, head, False)
            number, head, waiting = number + 1, True, ""


def pack_batches(items: Iterable[Item], settings: str) -> Iterator[Batch]:
    """Group items until they have `BATCH_CHARACTERS`."""
    for number, group in enumerate(grouped(items, BATCH_CHARACTERS)):
        yield Batch(number, group, _fingerprint(group, settings))


def _fingerprint(items: list[Item], settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for item in items:
        text = item.text.encode("utf-8", "surrogatepass")
        digest.update(f"\0{item.document}:{item.name}:{item.head}:{item.continues}:{len(text)}:".encode())
        digest.update(text)
    return digest.hexdigest()


@dataclass
class _Tally:
    """What the stages did in one batch."""

    changed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    examples: dict[str, dict[str, list[dict[str, str]]]] = field(default_factory=dict)

    def drop(self, stage: str, why: Dropped, item: Item) -> None:
        """Of a piece that has its document dropped only the example is kept here: the document is counted as a whole."""
        self._show(stage, why.rule, {"name": item.name, "text": item.text[:SHOWN], "found": why.found[:SHOWN]})
        if not item.head:
            return
        numbers = self.dropped.setdefault(stage, {}).setdefault(why.rule, [0, 0])
        numbers[0] += 1
        numbers[1] += len(item.text.encode("utf-8", "surrogatepass"))

    def change(self, stage: str, item: Item, before: str, after: str) -> None:
        self.changed[stage] = self.changed.get(stage, 0) + item.head
        if len(self.examples.get(stage, {}).get("changed", [])) < EXAMPLES:
            place = max(0, _first_difference(before, after) - 40)
            shown = {"text": before[place : place + 120], "found": after[place : place + 120]}
            self._show(stage, "changed", {"name": item.name, **shown})

    def _show(self, stage: str, rule: str, example: dict[str, str]) -> None:
        shown = self.examples.setdefault(stage, {}).setdefault(rule, [])
        if len(shown) < EXAMPLES:
            shown.append(example)


def _first_difference(left: str, right: str) -> int:
    """Where two texts part, by halves: they may have a million characters."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Cleaner:
    """What all batches of a corpus have in common."""

    directory: Path
    stages: list[tuple[Entry, Stage]]
    signer: Signer

    def finished(self, batch: Batch) -> Record | None:
        """The record of a batch that an earlier run cleaned, if it was this one and its files are whole."""
        path = record_path(self.directory, batch.number)
        if not path.exists():
            return None
        try:
            record: Record = read_json(path)
        except InputError:
            return None
        files = [(self.directory / name, whole) for name, whole in record["files"].items()]
        same = record["batch"] == batch.fingerprint
        return record if same and all(file.exists() and sha256(file) == whole for file, whole in files) else None

    def clean(self, batch: Batch) -> Record:
        """Clean a batch and write what is kept of it, its record last."""
        tally = _Tally()
        kept: list[Item] = []
        pieces: list[list[Any]] = []
        heads: dict[str, int | list[str]] = {}
        rows = 0
        shingles: list[Hashes] = []
        for item in batch.items:
            draft, stage, why = self._judge(item, tally)
            size = len(draft.text.encode("utf-8", "surrogatepass"))
            if not item.head:
                found = [stage, why.rule] if why else None
                pieces.append([item.document, size, hash_text(draft.text).tobytes().hex(), found])
            elif item.continues:
                heads[str(item.document)] = [stage, why.rule] if why else rows
            if why:
                tally.drop(stage, why, item)
                continue
            kept.append(item._replace(text=draft.text))
            rows += item.head
            if item.head and self.signer.bands:
                shingles.append(self.signer.shingles(draft))
        files = self._write(batch.number, kept, shingles)
        record = {
            "batch": batch.fingerprint,
            "documents": sum(item.head for item in batch.items),
            "rows": rows,
            "bytes": sum(len(item.text.encode("utf-8", "surrogatepass")) for item in batch.items),
            "changed": tally.changed,
            "dropped": tally.dropped,
            "examples": tally.examples,
            "heads": heads,
            "pieces": pieces,
            "files": files,
        }
        write_json(record_path(self.directory, batch.number), record)
        return record

    def _judge(self, item: Item, tally: _Tally) -> tuple[Draft, str, Dropped | None]:
        draft = Draft(item.text)
        for entry, stage in self.stages:
            if not (item.head or entry.pieces):
                continue
            outcome = stage(draft)
            # of an enormous document that has text, a piece may be empty
            if isinstance(outcome, Dropped) and (item.head or entry.name == "decontaminate"):
                return draft, entry.name, outcome
            if isinstance(outcome, Draft):
                if outcome.text != draft.text:
                    tally.change(entry.name, item, draft.text, outcome.text)
                draft = outcome
        return draft, "", None

    def _write(self, number: int, kept: list[Item], shingles: list[Hashes]) -> dict[str, str]:
        heads = [item for item in kept if item.head]
        rows = np.empty((4, len(heads)), np.uint64)
        for column, item in enumerate(heads):
            rows[:2, column] = item.document, len(item.text.encode("utf-8", "surrogatepass"))
            rows[2:, column] = hash_text(item.text)
        contents = {"text.parquet": pack_texts(kept), "rows.npy": pack_array(rows)}
        if self.signer.bands:
            bands, bytes_ = self.signer.sign(shingles)
            contents |= {"bands.npy": pack_array(bands), "values.npy": pack_array(bytes_)}
        files = {}
        for ending, content in contents.items():
            name = f"{number:05}.{ending}"
            write_bytes(self.directory / name, content)
            files[name] = hashlib.sha256(content).hexdigest()
        return files


def record_path(directory: Path, number: int) -> Path:
    """Where a batch's record lies."""
    return directory / f"{number:05}.json"


def settings_hash(settings: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
