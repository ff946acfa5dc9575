"""Checkpoints that are whole or absent, written while training goes on, and read by any other number of ranks.

`step-00001000/` holds `state.json` and, from each rank, safetensors files of the parts that it holds, with `rank-00000.json`
that tells where each part belongs in its whole (`parallel.shards`); written last, `manifest.json` has every file's size and
SHA-256. It is made under a temporary name and renamed when all is on disk; `latest` names the newest, and `best`, where a
run looks for it, the best one, which stays. Loading takes the
newest one that is whole, and says so when that is not the one named. No pickle is read, and no rank waits for another while
training: the main rank's writer sees the others' files appear.
"""

import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from shoal.core.errors import CheckpointError, ShoalError
from shoal.core.files import read_json, remove_folder, sha256, sync_folder, write_json, write_text
from shoal.core.tensors import write_tensors
from shoal.parallel.shards import Box, Boxes, cut, put

PATIENCE_SECONDS = 60.0
"""How long the main rank waits, after its own files, for those of the others."""

LEAST_URGENT = 19
"""The writer's niceness."""


@dataclass(frozen=True)
class Part:
    """What a rank holds of a tensor of `shape`; no boxes: all of it."""

    values: Tensor
    shape: torch.Size
    boxes: Boxes = ()


@dataclass(frozen=True)
class Snapshot:
    """Everything a run needs to go on: this rank's parts, by group and name, and plain numbers.

    `best`: the step whose checkpoint is the best so far, and must stay (None: all are alike).
    """

    step: int
    parts: dict[str, dict[str, Part]]
    state: dict[str, Any]
    best: int | None = None


def of_copy(group: str, copy: int) -> str:
    """The name of a group of tensors of one of several copies of the model."""
    return f"{group}-{copy}" if copy else group


class Checkpoints:
    """The checkpoints of one run; the last `keep` stay. Every rank writes what it is given, the main one makes it whole."""

    def __init__(self, folder: Path, keep: int = 2, rank: int = 0, ranks: int = 1) -> None:
        self.folder, self.keep, self.rank, self.ranks = folder, keep, rank, ranks
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._abandoned = threading.Event()
        if rank == 0:  # what a crash left behind; the others write only when all have met
            for rest in folder.glob(".step-*.tmp"):
                remove_folder(rest)

    def save(self, snapshot: Snapshot) -> None:
        """Copy the tensors, then write in the background. Raises what the previous save ran into."""
        self.wait()
        copies = {
            group: {
                name: Part(part.values.detach().to("cpu", copy=True), part.shape, part.boxes) for name, part in parts.items()
            }
            for group, parts in snapshot.parts.items()
        }
        copied = replace(snapshot, parts=copies)
        self._writer = threading.Thread(target=self._write, args=(copied,), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Return when the last save is on disk, on the main rank all of it; `CheckpointError` when it failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise CheckpointError(f"{self.folder}: the checkpoint could not be written: {failure}") from failure

    def abandon(self) -> None:
        """Wait no longer for the files of other ranks: one is gone."""
        self._abandoned.set()

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step-{step:08}"

    def of_step(self, step: int) -> "Saved | None":
        """The checkpoint of a step, which was kept."""
        return Saved.open(self.at(step))

    def newest(self) -> tuple[Path, list[str]] | None:
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
                return path, notes
            notes.append(f"checkpoint {path.name} is not whole ({fault}); falling back to an older one")
        if found:
            raise CheckpointError(f"{self.folder}: no whole checkpoint: " + "; ".join(notes))
        return None

    def _write(self, snapshot: Snapshot) -> None:
        temporary = self.folder / f".step-{snapshot.step:08}.tmp"
        mine = temporary / f"rank-{self.rank:05}.json"
        if sys.platform == "linux":  # where it means this thread alone: training goes first, a save takes what is left
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)
        try:
            self._write_parts(temporary, mine, snapshot)
            if self.rank == 0:
                self._complete(temporary, snapshot)
        except BaseException as error:  # whatever it is, "saved" would be a lie
            self._failure = error

    def _write_parts(self, temporary: Path, mine: Path, snapshot: Snapshot) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        files: dict[str, Any] = {}
        described: dict[str, Any] = {}
        for group, parts in snapshot.parts.items():
            if not parts:
                continue
            file = temporary / f"{group}-{self.rank:05}.safetensors"
            write_tensors(file, {name: part.values for name, part in parts.items()})
            files[file.name] = _facts(file)
            described[group] = {
                name: {
                    "shape": list(part.shape),
                    "dtype": str(part.values.dtype).removeprefix("torch."),
                    "boxes": [asdict(box) for box in part.boxes],
                }
                for name, part in parts.items()
            }
        write_json(mine, {"files": files, "parts": described})

    def _complete(self, temporary: Path, snapshot: Snapshot) -> None:
        """Wait for the other ranks' files, and make the whole."""
        expected = [temporary / f"rank-{rank:05}.json" for rank in range(self.ranks)]
        end = time.monotonic() + PATIENCE_SECONDS
        while not all(path.exists() for path in expected):
            if time.monotonic() > end or self._abandoned.wait(0.02):
                raise CheckpointError(f"ranks have not written their parts to {temporary} within {PATIENCE_SECONDS:.0f} s")
        write_json(temporary / "state.json", snapshot.state | {"step": snapshot.step})
        files = {path.name: _facts(path) for path in (*expected, temporary / "state.json")}
        for path in expected:
            files |= read_json(path)["files"]
        write_json(temporary / "manifest.json", {"files": files})
        sync_folder(temporary)
        name = self.at(snapshot.step).name
        remove_folder(self.folder / name)
        temporary.rename(self.folder / name)
        sync_folder(self.folder)
        write_text(self.folder / "latest", name + "\n")
        # later ones are of a past that this run has left: they were passed over as not whole
        whole = [path for path in sorted(self.folder.glob("step-*"), reverse=True) if path.name <= name]
        best = set() if snapshot.best is None else {self.at(snapshot.best)}
        for path in best:
            write_text(self.folder / "best", path.name + "\n")
        for old in {*self.folder.glob("step-*")} - {*whole[: self.keep]} - best:
            remove_folder(old)


class SavedElsewhere:
    """The checkpoints of a worker that holds nothing of its own: the main one saves for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""

    def abandon(self) -> None:
        """Nothing."""

    def at(self, step: int) -> Path:
        """Where the main rank keeps the checkpoint of a step."""
        return self.folder / f"step-{step:08}"

    def of_step(self, step: int) -> None:
        """None: the main rank's."""

    def newest(self) -> None:
        """None: ask the main rank's."""


@dataclass
class Whole:
    """A tensor in a checkpoint: its shape and type, and in which files its parts are."""

    shape: torch.Size
    dtype: torch.dtype
    places: list[tuple[Path, Boxes]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk, from which any part of any tensor can be read."""

    step: int
    state: dict[str, Any]
    wholes: dict[str, dict[str, Whole]]

    @classmethod
    def open(cls, folder: Path) -> "Saved":
        """Read what the folder holds, but no tensor."""
        state = read_json(folder / "state.json")
        wholes: dict[str, dict[str, Whole]] = {}
        for path in sorted(folder.glob("rank-*.json")):
            for group, parts in read_json(path)["parts"].items():
                file = folder / f"{group}-{path.stem.removeprefix('rank-')}.safetensors"
                for name, part in parts.items():
                    whole = Whole(torch.Size(part["shape"]), getattr(torch, part["dtype"]))
                    boxes = tuple(Box(*map(tuple, (box["view"], box["start"], box["sizes"]))) for box in part["boxes"])
                    wholes.setdefault(group, {}).setdefault(name, whole).places.append((file, boxes))
        return cls(state["step"], state, wholes)

    def read(self, group: str, name: str, boxes: Boxes = ()) -> Tensor:
        """The part of a tensor that `boxes` tell, whatever the parts in which it was saved. `KeyError` if there is none."""
        whole = self.wholes[group][name]
        everything = Box(tuple(whole.shape), (0,) * len(whole.shape), tuple(whole.shape))
        *outer, wanted = boxes or (everything,)
        places = [(file, its or (everything,)) for file, its in whole.places]
        if all([*its[:-1]] == outer and its[-1].view == wanted.view for _, its in places):
            return self._join(name, [(file, its[-1]) for file, its in places], wanted, whole.dtype)
        result = torch.empty(whole.shape, dtype=whole.dtype)
        for file, its in places:
            with safe_open(file, "pt") as opened:
                put(result, its, opened.get_tensor(name))
        return cut(result, boxes).clone()

    def _join(self, name: str, places: list[tuple[Path, Box]], wanted: Box, dtype: torch.dtype) -> Tensor:
        """Only what is wanted, from parts that are boxes of the same view."""
        result = torch.empty(wanted.sizes, dtype=dtype)
        for file, its in places:
            shared = its.overlap(wanted)
            if shared is None:
                continue
            with safe_open(file, "pt") as opened:
                if shared == its:
                    values = opened.get_tensor(name).reshape(its.sizes)
                else:
                    values = opened.get_slice(name)[shared.inside(its)]
            result[shared.inside(wanted)] = values
        return result


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


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


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
