"""Files of labelled examples, a row at a time: JSONL, CSV, TSV, Parquet, `datasets` folders, texts side by side.

Adding a format is one reader here, one line in `READERS`, and one row in the tests.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from shoal.core.errors import InputError
from shoal.core.recipe import Examples
from shoal.data.examples.example import Example, Role, choose_columns
from shoal.data.readers import Faults, numbered_lines, opened_text

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Where a row stands, and what its columns hold."""

Reader = Callable[[Path, Sequence[Role], Examples], Rows]


def read_examples(specs: Sequence[str], roles: Sequence[Role], settings: Examples, faults: Faults) -> Iterator[Example]:
    """The examples of some files, in their order; `InputError` names file and line of what is wrong."""
    paths = [Path(spec).expanduser() for spec in specs]
    if missing := [path for path in paths if not path.exists()]:
        raise InputError(f"{missing[0]}: no such file or folder; examples are read from files: --data FILE")
    for rows in _tables(paths, roles, settings):
        columns: tuple[tuple[str, ...], dict[str, str]] | None = None
        for where, row in rows:
            try:
                if columns is None or columns[0] != tuple(row):
                    columns = tuple(row), choose_columns(list(row), roles, settings.columns, where)
                yield Example({role: row[name] for role, name in columns[1].items()}, where)
            except InputError as error:
                faults.meet(error)


def _tables(paths: Sequence[Path], roles: Sequence[Role], settings: Examples) -> Iterator[Rows]:
    """The rows of each file, or, of texts side by side, of those that belong together: as many as the task needs columns."""
    if settings.format != "lines":
        yield from (READERS[_format(path, settings)](path, roles, settings) for path in paths)
        return
    names = [role.name for role in roles if role.needed]
    if len(paths) % len(names):
        raise InputError(
            f"{', '.join(map(str, paths))}: with 'examples.format' lines a file holds one column ({', '.join(names)}), so "
            f"files come in groups of {len(names)}, in this order"
        )
    for first in range(0, len(paths), len(names)):
        yield _side_by_side(dict(zip(names, paths[first : first + len(names)], strict=True)))


def _side_by_side(files: Mapping[str, Path]) -> Rows:
    """Line n of one file belongs to line n of the others; lines that are blank in all are left out."""
    shown = ", ".join(map(str, files.values()))
    lines = [numbered_lines(path, str(path), Faults(), blank=True) for path in files.values()]
    for number, row in enumerate(zip_longest(*lines), 1):
        parts = [part for part in row if part is not None]
        if len(parts) < len(row):
            ended = [
                number - 1 if part is None else number + sum(1 for _ in rest) for part, rest in zip(row, lines, strict=True)
            ]
            counts = ", ".join(f"{path} has {n:,} lines" for path, n in zip(files.values(), ended, strict=True))
            raise InputError(f"{counts}: line n of one must belong to line n of the others")
        texts = [text.rstrip("\r\n") for _, text in parts]
        if any(text.strip() for text in texts):
            yield f"{shown}: line {number}", dict(zip(files, texts, strict=True))


def _format(path: Path, settings: Examples) -> str:
    if settings.format != "auto":
        return settings.format
    if path.is_dir():
        return "datasets"
    ending = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    if ending.lower() not in ENDINGS:
        raise InputError(f"{path}: what format is '{ending}'? Say it: --examples.format ({', '.join(READERS)}, lines)")
    return ENDINGS[ending.lower()]


def _jsonl(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
    for where, line in numbered_lines(path, str(path), Faults()):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON ({error}); JSONL has one JSON object on every line") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: a line must be a JSON object")
        yield where, row


def _delimited(delimiter: str) -> Reader:
    def read(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
        with opened_text(path, str(path)) as file:
            # a tab separates whatever quotes stand between two of them
            quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
            rows = csv.reader(file, delimiter=delimiter, quoting=cast(Any, quoting), strict=True)
            names: list[str] | None = None
            try:
                for row in rows:
                    where = f"{path}:{rows.line_num}"
                    if not row:
                        continue
                    if names is None:
                        names, is_header = _header(row, roles, settings)
                        if is_header:
                            continue
                    if len(row) != len(names):
                        raise InputError(f"{where}: {len(row)} columns, where others have {len(names)}")
                    yield where, dict(zip(names, row, strict=True))
            except csv.Error as error:
                raise InputError(f"{path}:{rows.line_num}: not well-formed: {error}") from None

    return read


def _header(row: list[str], roles: Sequence[Role], settings: Examples) -> tuple[list[str], bool]:
    """(names of the columns, whether this row says them); without names, columns are the task's, in their order."""
    known = {name for role in roles for name in role.names} | set(settings.columns.values())
    if settings.header if settings.header is not None else any(cell.strip().lower() in known for cell in row):
        return [cell.strip() for cell in row], True
    needed = [role.name for role in roles if role.needed]
    names = needed if len(row) <= len(needed) else [role.name for role in roles]
    return [*names, *(f"column {number}" for number in range(len(names) + 1, len(row) + 1))][: len(row)], False


def _parquet(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({error})") from None


def _datasets(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(path)
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise InputError(f"{path}: not a whole `datasets` folder ({error})") from None
    if isinstance(dataset, DatasetDict):
        raise InputError(f"{path}: has the splits {', '.join(dataset)}; name their folders: {path / next(iter(dataset))}")
    for number, row in enumerate(dataset, 1):
        yield f"{path}: row {number}", row


READERS: dict[str, Reader] = {
    "jsonl": _jsonl, "csv": _delimited(","), "tsv": _delimited("\t"), "parquet": _parquet, "datasets": _datasets,
}  # fmt: skip
"""By `examples.format`."""

ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
