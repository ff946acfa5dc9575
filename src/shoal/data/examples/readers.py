"""Files of labelled examples, a row at a time: JSONL, CSV, TSV, Parquet, `datasets` folders, CoNLL columns, SQuAD's JSON,
texts side by side.

Adding a format is one reader here, one line in `READERS`, and one row in the tests.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from shoal.core.errors import InputError
from shoal.core.files import read_json
from shoal.core.recipe import Examples
from shoal.data.examples.conll import read_conll
from shoal.data.examples.example import Example, Role, choose_columns
from shoal.data.examples.squad import read_squad
from shoal.data.readers import COMPRESSIONS, Faults, byte_lines, numbered_lines, opened_text

Rows = Iterator[tuple[str, Mapping[str, Any] | InputError]]
"""Where a row stands, and what its columns hold, or what is wrong with it."""

Reader = Callable[[Path, Sequence[Role], Examples], Rows]

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
"""What the splits of a `datasets` folder are called, by what they are for."""

LONGEST_CELL = 1 << 30
"""Characters of a CSV's cell, where the library's own limit is a mail's length."""


def read_examples(
    specs: Sequence[str], roles: Sequence[Role], settings: Examples, faults: Faults, split: str = "train"
) -> Iterator[Example]:
    """The examples of some files, in their order; `InputError` names file and line of what is wrong.

    Of a `datasets` folder with several splits, `FOLDER:SPLIT` is one, and `FOLDER` the one that is for `split`.
    """
    paths = [_located(spec, split) for spec in specs]
    for rows in _tables(paths, roles, settings):
        columns: tuple[tuple[str, ...], dict[str, str]] | None = None
        for where, row in rows:
            try:
                if isinstance(row, InputError):
                    raise row
                if columns is None or columns[0] != tuple(row):
                    columns = tuple(row), choose_columns(list(row), roles, settings.columns, where)
                yield Example({role: row[name] for role, name in columns[1].items()}, where)
            except InputError as error:
                faults.meet(error)


def splits_of(spec: str) -> list[str]:
    """The names of a `datasets` folder's splits; none where it has one, or is something else."""
    saved = Path(spec).expanduser() / "dataset_dict.json"
    return list(read_json(saved).get("splits", [])) if saved.exists() else []


def has_known_format(path: Path) -> bool:
    """Whether a file's ending, or its being a folder, says how it is written."""
    return path.is_dir() or _ending(path) in ENDINGS


def _located(spec: str, split: str) -> Path:
    path = Path(spec).expanduser()
    folder, _, chosen = spec.rpartition(":")
    if not path.exists() and splits_of(folder):
        path = Path(folder).expanduser()
        names = [chosen]
    elif path.exists():
        names = list(SPLITS[split])
    else:
        raise InputError(f"{spec}: no such file or folder; examples are read from files: --data FILE")
    there = splits_of(str(path))
    if not there:
        return path
    name = next((name for name in names if name in there), None)
    if name is None:
        raise InputError(f"{spec}: has no split '{names[0]}'; it has {', '.join(there)}: name one as {path}:{there[0]}")
    return path / name


def _tables(paths: Sequence[Path], roles: Sequence[Role], settings: Examples) -> Iterator[Rows]:
    """The rows of each file; of texts side by side, of those that belong together, one for each column that is needed."""
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
    if not has_known_format(path):
        raise InputError(
            f"{path}: what format is '{_ending(path)}'? Say it: --examples.format ({', '.join(READERS)}, lines)"
        )
    return "datasets" if path.is_dir() else ENDINGS[_ending(path)]


def _ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()


def _jsonl(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
    for where, line in byte_lines(path, str(path)):
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield where, InputError(f"{where}: not UTF-8 text at byte {error.start} of the line")
        except (json.JSONDecodeError, RecursionError) as error:
            text = f"{where}: not valid JSON ({error}); JSONL has one JSON object on every line"
            yield where, InputError(text)
        else:
            yield where, row if isinstance(row, dict) else InputError(f"{where}: a line must be a JSON object")


def _delimited(delimiter: str) -> Reader:
    def read(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
        csv.field_size_limit(LONGEST_CELL)
        with opened_text(path, str(path)) as file:
            # a tab separates whatever quotes stand between two of them
            quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
            rows = csv.reader(file, delimiter=delimiter, quoting=cast(Any, quoting), strict=True)
            names: list[str] | None = None
            try:
                for line, row in _lines(rows):
                    where = f"{path}:{line}"
                    if names is None:
                        names, is_header = _header(row, roles, settings, where)
                        if is_header:
                            continue
                    if len(row) != len(names):
                        yield where, InputError(f"{where}: {len(row)} columns, where others have {len(names)}")
                    else:
                        yield where, dict(zip(names, row, strict=True))
            except csv.Error as error:
                raise InputError(f"{path}:{rows.line_num}: not well-formed: {error}") from None

    return read


def _lines(rows: Any) -> Iterator[tuple[int, list[str]]]:
    """Each row of a `csv.reader` that is not blank, with the line on which it begins: a quoted cell may have several."""
    line = 1
    for row in rows:
        if row:
            yield line, row
        line = rows.line_num + 1


def _header(row: list[str], roles: Sequence[Role], settings: Examples, where: str) -> tuple[list[str], bool]:
    """(names of the columns, whether this row says them).

    Without names, columns are the task's, in their order; or, where the recipe says which is what, 1, 2, …
    """
    cells = [cell.strip() for cell in row]
    known = {name for role in roles for name in role.names}
    named = any(cell.lower() in known or cell in settings.columns.values() for cell in cells)
    if settings.header if settings.header is not None else named:
        if repeated := next((cell for cell in cells if cells.count(cell) > 1), None):
            raise InputError(f"{where}: two columns are called '{repeated}'; give them names of their own")
        return cells, True
    numbers = [str(number) for number in range(1, len(row) + 1)]
    if settings.columns:
        return numbers, False
    needed = [role.name for role in roles if role.needed]
    names = needed if len(row) <= len(needed) else [role.name for role in roles]
    return [*names, *numbers[len(names) :]][: len(row)], False


def _parquet(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            label_names = _label_names(_features(table.schema_arrow))
            number = 0
            for batch in table.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", _with_names(row, label_names)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({error})") from None


def _features(schema: Any) -> Mapping[str, Any]:
    """What `datasets`, where it has written the file, says of the columns."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    from datasets import Features

    return dict(Features.from_arrow_schema(schema))


def _datasets(path: Path, roles: Sequence[Role], settings: Examples) -> Rows:
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(path)
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise InputError(f"{path}: not a whole `datasets` folder ({error}); of other folders give the files") from None
    label_names = _label_names(dataset.features)
    for number, row in enumerate(dataset, 1):
        yield f"{path}: row {number}", _with_names(row, label_names)


def _label_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of labels that stand as numbers, or as lists of them, by column."""
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    # the library's class, without its import where there are no features
    return {column: feature.names for column, feature in inner.items() if type(feature).__name__ == "ClassLabel"}


def _with_names(row: dict[str, Any], label_names: Mapping[str, list[str]]) -> dict[str, Any]:
    def name(value: Any, names: list[str]) -> Any:
        if isinstance(value, list):
            return [name(one, names) for one in value]
        if value == -1:  # the library's "no label"
            return None
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else value

    return row | {column: name(row[column], names) for column, names in label_names.items()}


READERS: dict[str, Reader] = {
    "jsonl": _jsonl, "csv": _delimited(","), "tsv": _delimited("\t"), "parquet": _parquet, "datasets": _datasets,
    "conll": read_conll, "squad": read_squad,
}  # fmt: skip
"""By `examples.format`."""

ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".json": "squad",
    ".conll": "conll", ".bio": "conll", ".iob": "conll", ".iob2": "conll", ".bioes": "conll",
}  # fmt: skip
