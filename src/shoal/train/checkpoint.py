"""Checkpoints that are whole or absent, written while training goes on.

`step-00001000/` holds `*.safetensors`, `state.json` and, written last, `manifest.json` with every file's size and SHA-256.
It is made under a temporary name and renamed when all is on disk; `latest` names the newest. Loading takes the newest one
that is whole, and says so when that is not the one named. No pickle is read.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.core.errors import CheckpointError, ShoalError
from shoal.core.files import read_json, remove_folder, sha256, sync_folder, write_json, write_text
from shoal.core.tensors import read_tensors, write_tensors


@dataclass(frozen=True)
class Snapshot:
    """Everything a run needs to go on: groups of tensors by name, and plain numbers."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; the last `keep` stay. Only the main rank writes."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Copy the tensors, then write in the background. Raises what the previous save ran into."""
        self.wait()
        copies = {
            group: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for group, tensors in snapshot.tensors.items()
        }
        copied = Snapshot(snapshot.step, copies, snapshot.state)
        self._writer = threading.Thread(target=self._write, args=(copied,), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Return when the last save is on disk; `CheckpointError` when it failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise CheckpointError(f"{self.folder}: the checkpoint could not be written: {failure}") from failure

    def load(self) -> tuple[Snapshot, list[str]] | None:
        """The newest whole checkpoint and notes on what was passed over; None when there has never been one."""
        notes: list[str] = []
        latest = self.folder / "latest"
        named = latest.read_text().strip() if latest.exists() else None
        found = sorted(self.folder.glob("step-*"), reverse=True)
        for path in found:
            fault = find_fault(path)
            if fault is None:
                if named not in (None, path.name) and not notes:
                    notes.append(f"checkpoint {named}, named the latest, is gone; taking {path.name}")
                tensors = {file.stem: read_tensors(file) for file in path.glob("*.safetensors")}
                state = read_json(path / "state.json")
                return Snapshot(state["step"], tensors, state), notes
            notes.append(f"checkpoint {path.name} is not whole ({fault}); falling back to an older one")
        if found:
            raise CheckpointError(f"{self.folder}: no whole checkpoint: " + "; ".join(notes))
        return None

    def _write(self, snapshot: Snapshot) -> None:
        name = f"step-{snapshot.step:08}"
        temporary = self.folder / f".{name}.tmp"
        try:
            remove_folder(temporary)
            temporary.mkdir(parents=True)
            for group, tensors in snapshot.tensors.items():
                if tensors:
                    write_tensors(temporary / f"{group}.safetensors", tensors)
            write_json(temporary / "state.json", snapshot.state | {"step": snapshot.step})
            files = {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(temporary.iterdir())
            }
            write_json(temporary / "manifest.json", {"files": files})
            sync_folder(temporary)
            remove_folder(self.folder / name)
            temporary.rename(self.folder / name)
            sync_folder(self.folder)
            write_text(self.folder / "latest", name + "\n")
            # later ones are of a past that this run has left: they were passed over as not whole
            whole = [path for path in sorted(self.folder.glob("step-*"), reverse=True) if path.name <= name]
            for old in {*self.folder.glob("step-*")} - {*whole[: self.keep]}:
                remove_folder(old)
        except BaseException as error:  # whatever it is, "saved" would be a lie
            self._failure = error


def find_fault(path: Path) -> str | None:
    """Why a checkpoint's folder is not whole; None when it is."""
    try:
        files = read_json(path / "manifest.json")["files"]
        for name, facts in files.items():
            file = path / name
            if file.stat().st_size != facts["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
            if sha256(file) != facts["sha256"]:
                return f"{name} has been altered"
    except (ShoalError, OSError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return None


def newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint's folder and plain numbers, without its tensors; None where there is none whole."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        state = path / "state.json"
        try:
            if sha256(state) == read_json(path / "manifest.json")["files"][state.name]["sha256"]:
                return path, read_json(state)
        except (ShoalError, OSError, KeyError, TypeError):
            continue
    return None
