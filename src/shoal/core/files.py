"""Files that are whole or absent: temporary name, fsync, rename. Nothing here is ever read by pickle.

Tensors have their own file, `core.tensors`: a process that only moves text must not wait two seconds for torch.
"""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError, ShoalError


def advice(number: int | None) -> str:
    """What to do about the system's error of this number, behind its message; nothing but for a full disk."""
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ""
    return "; make room there, then go on from what is finished: a run by --resume, prepare by the same command"


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it; `InputError` where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: no folder can be made there: {error.strerror}") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ShoalError(f"{path}: could not be written: {error.strerror or error}{advice(error.errno)}") from error


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`; `InputError` when it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise InputError(f"{path}: not valid JSON ({error}); the file is damaged or of another kind") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half-removed one is ever taken for whole: rename first, then delete."""
    doomed = folder.with_name(f".{folder.name}.removing")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
