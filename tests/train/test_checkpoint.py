"""Checkpoints are whole or absent, and never a pickle."""

from pathlib import Path

import pytest
import torch

from shoal.core.errors import CheckpointError
from shoal.train.checkpoint import Checkpoints, Snapshot


def snapshot(step: int) -> Snapshot:
    tensors = {"model": {"weight": torch.full((3, 2), float(step))}, "optimizer": {"weight/step": torch.tensor(1.0)}}
    return Snapshot(step, tensors, {"tokens": step * 10})


def save(folder: Path, *steps: int, keep: int = 5) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(snapshot(step))
    checkpoints.wait()
    return checkpoints


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    found = save(tmp_path, 7).load()
    assert found is not None
    loaded, notes = found
    assert loaded.step == 7
    assert loaded.state["tokens"] == 70
    assert torch.equal(loaded.tensors["model"]["weight"], torch.full((3, 2), 7.0))
    assert loaded.tensors["optimizer"]["weight/step"].shape == ()
    assert notes == []
    assert (tmp_path / "latest").read_text() == "step-00000007\n"


def test_saving_copies_so_that_training_may_go_on_at_once(tmp_path: Path) -> None:
    checkpoints, taken = Checkpoints(tmp_path), snapshot(1)
    checkpoints.save(taken)
    taken.tensors["model"]["weight"].fill_(99)
    checkpoints.wait()
    found = checkpoints.load()
    assert found is not None
    assert torch.equal(found[0].tensors["model"]["weight"], torch.ones(3, 2))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000003", "step-00000004"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "altered"])
def test_a_damaged_one_is_passed_over_for_the_newest_whole_one_with_a_note(tmp_path: Path, file: str, damage: str) -> None:
    checkpoints = save(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-3] ^= 1
        path.write_bytes(content)
    found = checkpoints.load()
    assert found is not None
    loaded, notes = found
    assert loaded.step == 1
    assert len(notes) == 1
    assert "step-00000002" in notes[0]


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing").load() is None
    checkpoints = save(tmp_path, 1)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoints.load()


def test_a_half_written_folder_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    found = checkpoints.load()
    assert found is not None
    assert found[0].step == 1
    checkpoints.save(snapshot(2))  # and it does not stand in the way
    checkpoints.wait()
    assert (tmp_path / "step-00000002" / "manifest.json").exists()


def test_a_save_that_fails_is_told_at_the_next_wait(tmp_path: Path) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be")
    checkpoints = Checkpoints(blocked)
    checkpoints.save(snapshot(1))
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoints.wait()


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".safetensors", ".json", ""}
