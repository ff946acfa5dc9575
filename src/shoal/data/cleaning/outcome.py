"""What the stages did, summed over batches: numbers and examples, for the manifest and the report."""

from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.data.cleaning.batches import EXAMPLES, SHOWN, Record
from shoal.data.cleaning.duplicates import CONTAMINATED, EXACT, KEPT, NEAR, Pair, Signatures
from shoal.data.cleaning.spool import Item, read_texts

Where = int | tuple[str, str]
"""The row of a document's head, or the stage and rule that dropped it."""


@dataclass
class Outcome:
    """Sums over batches, which are added in order.

    Of enormous documents, those of more than one item, it remembers where their pieces belong; there are few of them.
    """

    stages: list[str]
    documents: int = 0
    bytes: int = 0
    kept_documents: int = 0
    kept_bytes: int = 0
    rows: list[int] = field(default_factory=list)
    """Kept heads of each batch."""
    row_count: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    examples: dict[str, dict[str, list[dict[str, str]]]] = field(default_factory=dict)
    heads: dict[int, Where] = field(default_factory=dict)
    """Of enormous documents."""
    pieces: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    """By row: bytes and hash of each piece that follows the head."""
    contaminated: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By row: stage and rule for which a later piece has the document dropped."""

    def add(self, record: Record) -> None:
        """Add the next batch's record."""
        first_row = self.row_count
        self.documents += record["documents"]
        self.bytes += record["bytes"]
        self.rows.append(record["rows"])
        self.row_count += record["rows"]
        for stage, count in record["changed"].items():
            self.changed[stage] = self.changed.get(stage, 0) + count
        for stage, rules in record["dropped"].items():
            for rule, numbers in rules.items():
                self._drop(stage, rule, *numbers)
        for stage, rules in record["examples"].items():
            for rule, shown in rules.items():
                known = self.examples.setdefault(stage, {}).setdefault(rule, [])
                known += shown[: EXAMPLES - len(known)]
        for document, where in record["heads"].items():
            self.heads[int(document)] = first_row + where if isinstance(where, int) else tuple(where)
        for document, size, digest, found in record["pieces"]:
            where = self.heads[document]
            if not isinstance(where, int):
                self._drop(*where, 0, size)
                continue
            self.pieces.setdefault(where, []).append((size, digest))
            if found:
                self.contaminated.setdefault(where, tuple(found))

    def signatures(self, folder: Path) -> Signatures:
        """The hashes of all kept rows; to that of an enormous document, what its further pieces add."""
        further = {
            row: np.frombuffer(blake2b("".join(digest for _, digest in pieces).encode(), digest_size=16).digest(), np.uint64)
            for row, pieces in self.pieces.items()
        }
        return Signatures(folder, tuple(self.rows), further)

    def marks(self) -> NDArray[np.uint8]:
        """Why each row is dropped after all, before duplicates are found."""
        marks = np.zeros(self.row_count, np.uint8)
        marks[list(self.contaminated)] = CONTAMINATED
        return marks

    def count(self, signatures: Signatures, marks: NDArray[np.uint8]) -> None:
        """Count the rows that are kept in the end, and those that are not."""
        totals = np.zeros((4, 2), np.int64)
        enormous = np.array(sorted(self.pieces), np.int64)
        for batch, start in enumerate(signatures.starts[:-1].tolist()):
            sizes = signatures.load(batch, "rows")[1].astype(np.int64)
            end = start + len(sizes)
            for row in enormous[(enormous >= start) & (enormous < end)].tolist():
                sizes[row - start] += sum(size for size, _ in self.pieces[row])
                if row in self.contaminated:
                    self._drop(*self.contaminated[row], 1, int(sizes[row - start]))
            for mark in range(len(totals)):
                chosen = sizes[marks[start:end] == mark]
                totals[mark] += len(chosen), chosen.sum()
        self.kept_documents, self.kept_bytes = totals[KEPT].tolist()
        for mark, stage in ((EXACT, "exact"), (NEAR, "near")):
            if totals[mark].any():
                self._drop(stage, "duplicate", *totals[mark].tolist())

    def show_pairs(self, folder: Path, stage: str, pairs: list[Pair]) -> None:
        """Take duplicates, with the documents that they repeat, as examples."""
        for again, known in pairs:
            left, right = self._head(folder, again), self._head(folder, known)
            example = {"name": left.name, "text": left.text[:SHOWN], "found": f"{right.name}: {right.text[:SHOWN]}"}
            self.examples.setdefault(stage, {}).setdefault("duplicate", []).append(example)

    def summary(self) -> dict[str, Any]:
        """All numbers and examples, as plain values."""
        stages, left = [], self.documents
        for name in self.stages:
            rules = dict(sorted(self.dropped.get(name, {}).items()))
            dropped = sum(documents for documents, _ in rules.values())
            stages.append(
                {
                    "stage": name,
                    "documents": left,
                    "changed": self.changed.get(name, 0),
                    "dropped": dropped,
                    "dropped_bytes": sum(size for _, size in rules.values()),
                    "rules": rules,
                    "examples": self.examples.get(name, {}),
                }
            )
            left -= dropped
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "kept_documents": self.kept_documents,
            "kept_bytes": self.kept_bytes,
            "stages": stages,
        }

    def _drop(self, stage: str, rule: str, documents: int, size: int) -> None:
        numbers = self.dropped.setdefault(stage, {}).setdefault(rule, [0, 0])
        numbers[0] += documents
        numbers[1] += size

    def _head(self, folder: Path, row: int) -> Item:
        for batch, count in enumerate(self.rows):
            if row < count:
                heads = (item for item in read_texts(folder / f"{batch:05}.text.parquet") if item.head)
                return next(item for place, item in enumerate(heads) if place == row)
            row -= count
        raise IndexError(row)
