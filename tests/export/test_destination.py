"""Where exports go: whole or not at all, and never over something else."""

from pathlib import Path

import pytest
import torch

from shoal.core.errors import InputError, ShoalError
from shoal.export.destination import check_destination, size_of, staged


def test_what_is_written_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "model.gguf"
    with staged(path) as new:
        assert new.name == path.name
        new.write_bytes(b"GGUF and more")
        assert not path.exists()
    assert path.read_bytes() == b"GGUF and more"
    assert size_of(path) == 13
    assert [entry.name for entry in path.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("name", ["model.gguf", "folder"])
def test_an_error_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with staged(path) as new:
        new.mkdir() if name == "folder" else new.write_text("before")
    with pytest.raises(ShoalError, match="broken"), staged(path) as new:
        new.mkdir() if name == "folder" else new.write_text("half")
        raise ShoalError("broken")
    assert path.is_dir() if name == "folder" else path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_an_export_is_replaced_only_if_asked_and_only_by_its_like(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    old, folder, other = tmp_path / "old.gguf", tmp_path / "onnx", tmp_path / "notes.txt"
    old.write_bytes(b"GGUF....")
    folder.mkdir()
    for name in ("model.onnx", "config.json"):
        (folder / name).write_bytes(b"")
    torch.save({}, tmp_path / "weights.pt")
    other.write_text("GG, not a model")
    check_destination(tmp_path / "new.gguf", "gguf", source, False)
    check_destination(old, "gguf", source, True)
    check_destination(folder, "onnx", source, True)
    with pytest.raises(InputError, match="is there already; give another place by --out, or let it be replaced"):
        check_destination(old, "gguf", source, False)
    for path, kind in (
        (other, "gguf"),
        (old, "torch"),
        (tmp_path / "weights.pt", "torch"),
        (folder, "hf"),
        (folder, "gguf"),
        (old, "onnx"),
    ):
        with pytest.raises(InputError, match=f"is nothing that --format {kind} writes"):
            check_destination(path, kind, source, True)
    for path in (source, tmp_path):
        with pytest.raises(InputError, match="is the model that is exported, or holds it"):
            check_destination(path, "hf", source, True)
