"""Checkpoints are whole or absent, and never a pickle."""

from pathlib import Path

import pytest
import torch

from shoal.core.errors import CheckpointError
from shoal.parallel.shards import Box, Boxes, cut
from shoal.train.checkpoint import Checkpoints, Part, Saved, Snapshot


def whole(values: torch.Tensor) -> Part:
    return Part(values, values.shape)


def snapshot(step: int) -> Snapshot:
    model = {"weight": whole(torch.full((3, 2), float(step)))}
    return Snapshot(step, {"model": model, "optimizer": {"weight/step": whole(torch.tensor(1.0))}}, {"tokens": step * 10})


def save(folder: Path, *steps: int, keep: int = 5) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(snapshot(step))
    checkpoints.wait()
    return checkpoints


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    found = save(tmp_path, 7).newest()
    assert found is not None
    loaded, notes = Saved.open(found[0]), found[1]
    assert loaded.step == 7
    assert loaded.state["tokens"] == 70
    assert torch.equal(loaded.read("model", "weight"), torch.full((3, 2), 7.0))
    assert loaded.read("optimizer", "weight/step").shape == ()
    assert notes == []
    assert (tmp_path / "latest").read_text() == "step-00000007\n"


def test_saving_copies_so_that_training_may_go_on_at_once(tmp_path: Path) -> None:
    checkpoints, taken = Checkpoints(tmp_path), snapshot(1)
    checkpoints.save(taken)
    taken.parts["model"]["weight"].values.fill_(99)
    checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None
    assert torch.equal(Saved.open(found[0]).read("model", "weight"), torch.ones(3, 2))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000003", "step-00000004"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("file", ["model-00000.safetensors", "rank-00000.json", "state.json", "manifest.json"])
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
    found = checkpoints.newest()
    assert found is not None
    path, notes = found
    assert path.name == "step-00000001"
    assert len(notes) == 1
    assert "step-00000002" in notes[0]


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing").newest() is None
    checkpoints = save(tmp_path, 1)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoints.newest()


def test_a_half_written_folder_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    found = checkpoints.newest()
    assert found is not None
    assert found[0].name == "step-00000001"
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


ROWS, COLUMNS = 7, 6
DIVISIONS: dict[str, list[Boxes]] = {
    "whole": [()],
    "rows": [(Box.along((ROWS, COLUMNS), 0, a, b),) for a, b in ((0, 3), (3, 6), (6, 7), (7, 7))],
    "columns": [(Box.along((ROWS, COLUMNS), 1, a, b),) for a, b in ((0, 3), (3, 6))],
    "pieces": [(Box.piece((ROWS, COLUMNS), a, b),) for a, b in ((0, 11), (11, 40), (40, 42))],
    "columns, then rows": [
        (Box.along((ROWS, COLUMNS), 1, a, a + 3), Box.along((ROWS, 3), 0, c, d)) for a in (0, 3) for c, d in ((0, 4), (4, 7))
    ],
    "columns, then pieces": [
        (Box.along((ROWS, COLUMNS), 1, a, a + 3), Box.piece((ROWS, 3), c, d)) for a in (0, 3) for c, d in ((0, 10), (10, 21))
    ],
}


@pytest.mark.parametrize("saved_as", DIVISIONS)
def test_what_was_saved_in_any_division_is_read_in_any_other(tmp_path: Path, saved_as: str) -> None:
    values = torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS)
    ranks = DIVISIONS[saved_as]
    writers = [Checkpoints(tmp_path, 1, rank, len(ranks)) for rank in range(len(ranks))]
    for boxes, writer in zip(ranks, writers, strict=True):
        writer.save(Snapshot(1, {"model": {"weight": Part(cut(values, boxes), values.shape, boxes)}}, {}))
    for writer in writers[::-1]:
        writer.wait()
    found = writers[0].newest()
    assert found is not None
    saved = Saved.open(found[0])
    for division in DIVISIONS.values():
        for boxes in division:
            assert torch.equal(saved.read("model", "weight", boxes), cut(values, boxes))


def test_a_rank_that_does_not_write_its_part_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.train.checkpoint.PATIENCE_SECONDS", 0.1)
    first = Checkpoints(tmp_path, 1, 0, 2)
    first.save(snapshot(1))
    with pytest.raises(CheckpointError, match="have not written their parts"):
        first.wait()
    assert first.newest() is None
