"""Where an export goes: whole or not at all, and never over something else."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.core.errors import InputError, ShoalError
from shoal.core.files import make_folder, remove_folder, sync_folder

MARKS = {"hf": ("config.json", "model.safetensors"), "onnx": ("model.onnx",)}
"""The files by which an exported folder is known."""

MAGIC = b"GGUF"
"""How a file of GGUF begins."""

ARCHIVE = "/archive_format"
"""How the entry is named by which a `.pt2` differs from other zip files, as those of `torch.save`."""

ENDINGS = {"hf": "-hf", "gguf": ".gguf", "onnx": "-onnx", "torch": ".pt2"}


def check_destination(path: Path, kind: str, source: Path, replace: bool) -> None:
    """`InputError` where `path` can't take an export of this kind: what is there is none, or may not be replaced."""
    if path.resolve() == source.resolve() or source.resolve().is_relative_to(path.resolve()):
        raise InputError(f"{path}: is the model that is exported, or holds it; give another place by --out")
    if not (path.exists() or path.is_symlink()):
        return
    if not replace:
        raise InputError(f"{path}: is there already; give another place by --out, or let it be replaced: --replace")
    if not _is_export(path, kind):
        raise InputError(
            f"{path}: is there already, and is nothing that --format {kind} writes; give another place by --out"
        )


def _is_export(path: Path, kind: str) -> bool:
    if kind in MARKS:
        return path.is_dir() and all((path / name).is_file() for name in MARKS[kind])
    if not path.is_file():
        return False
    if kind == "torch":
        return _is_program(path)
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _is_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(ARCHIVE) for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place of the same name beside `path`; what is written there takes its place in the end, unless an error comes."""
    make_folder(path.parent)
    stage = path.parent / f".{path.name}.{os.getpid()}.tmp"
    remove_folder(stage)
    make_folder(stage)
    try:
        new = stage / path.name
        yield new
        for part in (new, *new.rglob("*")):
            if part.is_dir():
                sync_folder(part)
            else:
                _flush(part)
        if path.is_dir():
            remove_folder(path)
        new.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ShoalError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        remove_folder(stage)


def _flush(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
