"""Files are whole or absent."""

import hashlib
from pathlib import Path

import pytest

from shoal.core.errors import InputError, ShoalError
from shoal.core.files import read_json, remove_folder, sha256, sync_folder, write_bytes, write_json, write_text
from tests.core.limits import largest_file


def test_text_and_json_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "folders" / "a.txt", "naïve 日本語\n")
    assert (tmp_path / "new" / "folders" / "a.txt").read_bytes() == "naïve 日本語\n".encode()
    value = {"b": [1, 2.5, None, "日本語"], "a": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "日本語" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with largest_file(1000), pytest.raises(ShoalError, match=r"a\.txt: could not be written: File too large"):
        write_bytes(file, b"x" * 100_000)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_over_a_folder_fails_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ShoalError, match="could not be written"):
        write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_folder_that_a_file_is_in_the_way_of_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file/below: no folder can be made there"):
        write_text(tmp_path / "file" / "below" / "a.txt", "x")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1, 2", b"\xff\xfe", b"plain words", b"[" * 100_000, b"1" * 5000])
def test_damaged_json_is_told_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_json_that_is_missing_or_a_folder_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(InputError, match=r"b\.json: can't be read: Is a directory"):
        read_json(tmp_path / "b.json")


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    write_bytes(tmp_path / "a", content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_folder_is_removed_with_all_that_is_in_it_also_after_an_interrupted_removal(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    write_text(tmp_path / ".a.removing" / "left.txt", "x")
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "never there")
    sync_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
