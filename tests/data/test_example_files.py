"""Files of labelled examples: the same rows from every format, and what is wrong with one told with its line."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from pyarrow import parquet

from shoal.core.errors import InputError
from shoal.core.recipe import Examples
from shoal.core.recipe_file import read_recipe
from shoal.data.examples.example import Role
from shoal.data.examples.readers import read_examples
from shoal.data.examples.splits import read_splits
from shoal.data.readers import Faults

ROLES = (Role("text", ("text", "sentence")), Role("text_b", ("text_b", "sentence"), needed=False), Role("label", ("label",)))
Rows = Sequence[tuple[str, ...]]
ROWS: Rows = [('a "quoted", and\ntwo lines', "good"), ("鱼群, Überraschung", "bad"), ("plain", "good")]
FLAT: Rows = [(text.replace("\n", " "), label) for text, label in ROWS]
TURNED: Rows = [(label, text) for text, label in ROWS]


def commas(rows: Rows, *header: str) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows] if header else rows)
    return text.getvalue().encode()


def tabs(rows: Rows) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def objects(rows: Rows) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text, "label": label}) + "\n" for text, label in rows).encode()


def dataset() -> Dataset:
    """Labels by number, with names."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = [{"text": text, "label": ["bad", "good"].index(label)} for text, label in ROWS]
    return Dataset.from_list(rows, features=features)


def as_bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def zstd(path: Path) -> None:
    with arrow.output_stream(str(path), compression="zstd") as file:
        file.write(objects(ROWS))


CASES: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any], Rows]] = {
    "csv": ("a.csv", as_bytes(commas(ROWS, "text", "label")), {}, ROWS),
    "csv, no header": ("a.csv", as_bytes(commas(ROWS)), {}, ROWS),
    "csv, byte-order mark": ("a.csv", as_bytes("\ufeff".encode() + commas(ROWS, "text", "label")), {}, ROWS),
    "csv, other names": (
        "a.csv", as_bytes(commas(TURNED, "Stars", "Said")), {"columns": {"text": "Said", "label": "Stars"}}, ROWS,
    ),
    "csv, by number": ("a.csv", as_bytes(commas(TURNED)), {"columns": {"text": "2", "label": "1"}}, ROWS),
    "csv, text like a header": ("a.csv", as_bytes(commas([("text", "good")])), {"header": False}, [("text", "good")]),
    "tsv": ("a.tsv", as_bytes(tabs([("sentence", "label"), *FLAT])), {}, FLAT),
    "tsv, no header": ("a.tsv", as_bytes(tabs(FLAT)), {}, FLAT),
    "tsv, gzip": ("a.tsv.gz", as_bytes(gzip.compress(tabs(FLAT))), {}, FLAT),
    "jsonl": ("a.jsonl", as_bytes(objects(ROWS)), {}, ROWS),
    "jsonl, zstd": ("a.ndjson.zst", zstd, {}, ROWS),
    "jsonl by another name": ("a.txt", as_bytes(objects(ROWS)), {"format": "jsonl"}, ROWS),
    "parquet": ("a.parquet", lambda path: parquet.write_table(arrow.table(dataset().to_pandas()), path), {}, [
        (text, {"bad": 0, "good": 1}[label]) for text, label in ROWS  # type: ignore[misc]
    ]),
    "parquet, labels with names": ("a.parquet", lambda path: dataset().to_parquet(path), {}, ROWS),
    "datasets": ("folder", lambda path: dataset().save_to_disk(path), {}, ROWS),
    "datasets, splits": (
        "folder", lambda path: DatasetDict({"train": dataset(), "dev": dataset().select([0])}).save_to_disk(path), {}, ROWS,
    ),
    "datasets, one of its splits": (
        "folder:extra", lambda path: DatasetDict({"extra": dataset()}).save_to_disk(path.with_name("folder")), {}, ROWS,
    ),
}  # fmt: skip


def read(files: list[str], settings: Examples, faults: Faults | None = None) -> list[tuple[Any, ...]]:
    found = read_examples(files, ROLES, settings, faults or Faults())
    return [(example.values["text"], example.values["label"]) for example in found]


@pytest.mark.parametrize("case", CASES)
def test_every_format_gives_the_same_rows(tmp_path: Path, case: str) -> None:
    name, write, settings, rows = CASES[case]
    write(tmp_path / name)
    assert read([str(tmp_path / name)], Examples(**settings)) == list(rows)


def test_a_row_is_told_by_the_line_on_which_it_begins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n\n" + commas(ROWS))
    examples = read_examples([str(tmp_path / "a.csv")], ROLES, Examples(), Faults())
    assert [example.where.rpartition(":")[2] for example in examples] == ["3", "5", "6"]


def test_columns_are_found_by_their_usual_names_each_as_one_thing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"sentence": "b", "text": "a", "label": 1}\n{"label": 2, "sentence": "c"}\n')
    found = [example.values for example in read_examples([str(tmp_path / "a.jsonl")], ROLES, Examples(), Faults())]
    assert found == [{"text": "a", "text_b": "b", "label": 1}, {"text": "c", "label": 2}]


def test_column_numbers_may_be_given_as_numbers() -> None:
    assert read_recipe(None, ["--examples.columns", "{text: 2, label: 1}"]).examples.columns == {"text": "2", "label": "1"}


def test_lists_of_labels_with_names_get_them_and_no_label_is_none(tmp_path: Path) -> None:
    names = ClassLabel(names=["x", "y"])
    features = Features({"text": Value("string"), "label": List(names)})
    Dataset.from_list([{"text": "a", "label": [1, 0]}], features=features).save_to_disk(tmp_path / "lists")
    assert read([str(tmp_path / "lists")], Examples()) == [("a", ["y", "x"])]
    features = Features({"text": Value("string"), "label": names})
    Dataset.from_list([{"text": "a", "label": -1}], features=features).save_to_disk(tmp_path / "hidden")
    assert read([str(tmp_path / "hidden")], Examples()) == [("a", None)]


def test_splits_are_those_of_the_folder_or_held_out_of_the_files(tmp_path: Path) -> None:
    DatasetDict({"train": dataset(), "dev": dataset().select([0]), "test": dataset()}).save_to_disk(tmp_path / "folder")
    folder = str(tmp_path / "folder")
    splits = read_splits(Examples(train=[folder], test=[folder]), ROLES)
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [3, 1, 3]
    texts = [f"text {number // 2}" for number in range(400)]  # each twice
    (tmp_path / "a.jsonl").write_bytes(objects([(text, "good") for text in texts]))
    files = [str(tmp_path / "a.jsonl")]
    splits = read_splits(Examples(train=files, held_out=0.25), ROLES)
    train, validation = ([example.values["text"] for example in split] for split in (splits.train, splits.validation))
    assert sorted(train + validation) == sorted(texts) and not {*train} & {*validation} and 50 < len(validation) < 150
    tail = read_splits(Examples(train=files, held_out=0.25, held_out_by="tail", limit=100), ROLES)
    assert [example.values["text"] for example in tail.validation] == texts[300:]
    # a limit takes from all of a file, not from its beginning
    assert [example.values["text"] for example in tail.train] == texts[:300:3]


BAD: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "columns": ("a.csv", b"text,label\na,b\na,b,c\n", {}, r"a\.csv:3: 3 columns, where others have 2"),
    "quotes": ("a.csv", b'text,label\na,b\n"a"x,b\n', {}, r"a\.csv:3: not well-formed: .*"),
    "no column": (
        "a.csv", b"text,stars\na,1\n", {},
        r"a\.csv:2: no column for the label \(label\); there are: text, stars\. Name it: --examples\.columns '\{label: COL",
    ),
    "named column": ("a.jsonl", b'{"text": "a", "label": 1}', {"columns": {"label": "stars"}}, r":1: no column 'stars'"),
    "another role": (
        "a.jsonl", b"{}", {"columns": {"stars": "label"}}, r"'examples\.columns' names 'stars', .* accepted: text, t",
    ),
    "one name twice": ("a.csv", b"text,text,label\na,b,c\n", {}, r"a\.csv:1: two columns are called 'text'"),
    "json": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text"\n', {}, r"a\.jsonl:2: not valid JSON"),
    "no object": ("a.jsonl", b"[1]\n", {}, r"a\.jsonl:1: a line must be a JSON object"),
    "not utf-8": ("a.jsonl", b'{"text": "\xff"}\n', {}, r"a\.jsonl:1: not UTF-8 text at byte 10 of the line"),
    "not utf-8, csv": ("a.csv", b"text,label\n\xff,b\n", {}, r"a\.csv: not UTF-8 text"),
    "parquet": ("a.parquet", b"PAR1", {}, r"a\.parquet: not a whole Parquet file"),
    "format": ("a.doc", b"", {}, r"a\.doc: what format is '\.doc'\? Say it: --examples\.format \(jsonl, csv"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, settings, told = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        read([str(tmp_path / name)], Examples(**settings))


def test_a_folder_that_is_no_data_set_or_lacks_a_split_is_told(tmp_path: Path) -> None:
    DatasetDict({"other": dataset()}).save_to_disk(tmp_path / "folder")
    with pytest.raises(InputError, match=r"has no split 'train'; it has other: name one as .*folder:other"):
        read([str(tmp_path / "folder")], Examples())
    with pytest.raises(InputError, match=r"folder:none: has no split 'none'; it has other"):
        read([f"{tmp_path / 'folder'}:none"], Examples())
    with pytest.raises(InputError, match=r"not a whole `datasets` folder .*; of other folders give the files"):
        read([str(tmp_path)], Examples())
    with pytest.raises(InputError, match="no such file or folder; examples are read from files: --data FILE"):
        read([str(tmp_path / "none.csv")], Examples())


def test_rows_that_can_not_be_used_are_left_out_where_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\na,b\na,b,c\nc,d\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "e", "label": "f"}\n\xff\n{"text"\n[1]\n{"text": "g"}\n')
    faults = Faults(skip=True)
    assert read([str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")], Examples(), faults) == [
        ("a", "b"),
        ("c", "d"),
        ("e", "f"),
    ]
    assert faults.count == 5 and faults.first[0].endswith("a.csv:3: 3 columns, where others have 2")
