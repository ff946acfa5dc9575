"""Tensors in safetensors files that are whole or absent, like everything in `core.files`."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from shoal.core.errors import InputError, ShoalError
from shoal.core.files import advice, make_folder


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace `path` by the tensors, as safetensors, atomically."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt"})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))  # the library has it in its text alone
        told = advice(error.errno if isinstance(error, OSError) else int(number[1]) if number else None)
        raise ShoalError(f"{path}: could not be written: {error}{told}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file; `InputError` when it is missing or damaged."""
    with _damage_told(path):
        return load_file(path)


def read_names(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file, none of which is read; `InputError` as `read_tensors`."""
    with _damage_told(path), safe_open(path, "pt") as opened:
        return set(opened.keys())


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None
