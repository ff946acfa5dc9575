"""Sources give the same documents in the same order, as a stream, or say what is wrong and where."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as arrow
import pytest
from pyarrow import parquet

from shoal.core.errors import InputError
from shoal.data import readers
from shoal.data.sources import open_source, open_sources

TEXTS = ["First text.\n", "Zweiter Text: äöü", "третий", "line\r\nline\u2028still the same\n"]


def write_text_folder(root: Path) -> Path:
    root.mkdir()
    for number, text in enumerate(TEXTS):
        (root / f"{number}.txt").write_bytes(text.encode())
    return root


def write_jsonl(root: Path) -> Path:
    path = root.with_suffix(".jsonl")
    path.write_text("\n\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS))
    return path


def write_jsonl_gzip(root: Path) -> Path:
    path = root.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress(write_jsonl(root).read_bytes()))
    return path


def write_jsonl_zstd(root: Path) -> Path:
    path = root.with_suffix(".jsonl.zst")
    with arrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(write_jsonl(root).read_bytes())
    return path


def write_parquet(root: Path) -> Path:
    path = root.with_suffix(".parquet")
    parquet.write_table(arrow.table({"id": range(len(TEXTS)), "text": TEXTS}), path)
    return path


def write_mixed_folder(root: Path) -> Path:
    (root / "a").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "secret.txt").write_text("not read")
    (root / "image.png").write_bytes(b"\x89PNG\xff")
    (root / "a" / "0.md").write_bytes(TEXTS[0].encode())
    (root / "a" / "1.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode()))
    (root / "b.jsonl").write_text(json.dumps({"text": TEXTS[2]}))
    parquet.write_table(arrow.table({"text": TEXTS[3:]}), root / "c.parquet")
    return root


def write_datasets_folder(root: Path) -> Path:
    from datasets import Dataset

    Dataset.from_dict({"id": list(range(len(TEXTS))), "text": TEXTS}).save_to_disk(root)
    return root


def write_datasets_dictionary(root: Path) -> Path:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_dict({"text": TEXTS}), "test": Dataset.from_dict({"text": ["no"]})}).save_to_disk(
        root
    )
    return root


KINDS: list[Callable[[Path], Path]] = [
    write_text_folder, write_jsonl, write_jsonl_gzip, write_jsonl_zstd, write_parquet, write_mixed_folder,
    write_datasets_folder, write_datasets_dictionary,
]  # fmt: skip


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_every_kind_of_source_gives_its_texts_in_order_as_often_as_one_likes(write, tmp_path):
    source = open_source(str(write(tmp_path / "source")), "text")
    for _ in range(2):
        assert [document.text for document in source] == TEXTS


def test_a_dataset_of_the_hub_streams(tmp_path):
    layout = tmp_path / "owner" / "name"
    (layout / "data").mkdir(parents=True)
    parquet.write_table(arrow.table({"id": range(len(TEXTS)), "text": TEXTS}), layout / "data" / "train-00000.parquet")
    source = open_source(f"hub:{layout}", "text")
    assert [document.text for document in source] == TEXTS
    with pytest.raises(InputError, match="no field 'body'; the fields are: id, text"):
        list(open_source(f"hub:{layout}", "body"))
    with pytest.raises(InputError, match="can't be opened"):
        open_source(f"hub:{tmp_path / 'owner' / 'other'}", "text")


def test_the_standard_library_is_python_in_a_fixed_order_without_installed_packages():
    source = open_source("stdlib", "text")
    names = [document.name for document in source]
    assert names == sorted(names)
    assert "json/decoder.py" in names
    assert not any("site-packages" in name for name in names)
    assert source.bytes is not None and source.bytes > 10_000_000
    assert source.fingerprint == open_source("stdlib", "text").fingerprint


def test_a_large_text_file_is_one_document_in_pieces_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 100)
    text = "".join(f"line {number} ü\n" for number in range(200)) + "no line end"
    path = tmp_path / "large.txt"
    path.write_bytes(text.encode())
    pieces = list(open_source(str(path), "text"))
    assert len(pieces) > 10
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.continues for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert all(piece.text.endswith("\n") for piece in pieces[:-1])


def test_a_text_file_without_line_ends_is_cut_anyway(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 100)
    (tmp_path / "one-line.txt").write_text("海" * 1000)
    pieces = list(open_source(str(tmp_path / "one-line.txt"), "text"))
    assert max(len(piece.text) for piece in pieces) <= 100
    assert "".join(piece.text for piece in pieces) == "海" * 1000


def test_text_is_kept_as_it_is_but_for_a_byte_order_mark(tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert [document.text for document in open_source(str(tmp_path / "marked.txt"), "text")] == ["one\r\ntwo\r\n"]


def test_a_fingerprint_changes_with_names_sizes_and_times_and_with_nothing_else(tmp_path):
    folder = write_text_folder(tmp_path / "folder")
    first = open_source(str(folder), "text").fingerprint
    assert open_source(str(folder), "other").fingerprint == first
    os.utime(folder / "0.txt", (1, 1))
    touched = open_source(str(folder), "text").fingerprint
    (folder / "0.txt").rename(folder / "9.txt")
    assert len({first, touched, open_source(str(folder), "text").fingerprint}) == 3


def faulty(root: Path, name: str, content: bytes) -> str:
    (root / name).write_bytes(content)
    return str(root / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "fine"}\n["text"]\n', r"a\.jsonl:2: a line must be a JSON object"),
        ("a.jsonl", b'{"body": "", "id": 1}\n', r"a\.jsonl:1: no field 'text'; the fields are: body, id\. Name one with"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl:1: the field 'text' is NoneType, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: holds half a surrogate pair"),
        ("a.jsonl", b'\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 text at byte 10"),
        ("a.txt", b"x" * 5_000_000 + b"\xff", r"a\.txt: not UTF-8 text at byte 5000000"),
        ("a.txt", "cut ü".encode()[:-1], r"a\.txt: not UTF-8 text at byte 4"),
        ("a.txt", b"", r"a\.txt: holds no text"),
        ("a.jsonl", b"\n\n", r"a\.jsonl: holds no text"),
        ("a.txt.gz", b"not gzip", r"a\.txt\.gz: can't be read"),
        ("a.txt.gz", gzip.compress(b"cut" * 999, mtime=0)[:-9], r"a\.txt\.gz: can't be read: Truncated"),
        ("a.txt.zst", b"not zstd", r"a\.txt\.zst: can't be read"),
        ("a.parquet", b"not parquet", r"a\.parquet: not a whole Parquet file"),
    ],
)  # fmt: skip
def test_faults_name_the_file_the_place_and_what_is_wrong(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        list(open_source(faulty(tmp_path, name, content), "text"))


def test_a_missing_column_names_those_that_are_there(tmp_path):
    with pytest.raises(InputError, match="no field 'body'; the fields are: id, text"):
        list(open_source(str(write_parquet(tmp_path / "table")), "body"))


def test_missing_paths_name_the_nearest(tmp_path):
    folder = write_text_folder(tmp_path / "folder")
    with pytest.raises(InputError, match=r"folder/0\.text: no such file or folder; did you mean .*folder/0\.txt\?"):
        open_source(str(folder / "0.text"), "text")
    with pytest.raises(InputError, match=r"stdlb: no such file or folder; did you mean stdlib\?"):
        open_source("stdlb", "text")
    with pytest.raises(InputError, match="and no folder"):
        open_source(str(tmp_path / "nowhere" / "a.txt"), "text")


def test_a_folder_without_text_says_what_was_found(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "image.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no text files in it \(found: \.png\)"):
        open_source(str(tmp_path / "folder"), "text")


def test_no_sources_at_all_is_an_error():
    with pytest.raises(InputError, match=r"data\.sources is empty"):
        open_sources([], "text")
