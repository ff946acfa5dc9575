"""Write a model for other programs: transformers, llama.cpp, onnxruntime, or torch alone.

    shoal export runs/demo --format hf --dtype bf16
    shoal export runs/demo --format gguf --dtype q8_0 --out demo.gguf
    shoal export runs/sst2 --format onnx
    shoal export runs/demo --format torch

What is written is run by the program that it is for, where that is installed, on a sample text, and compared with the
model; if it computes something else, nothing is kept.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from shoal.core.errors import InputError
from shoal.core.files import read_json
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe_file import build_recipe
from shoal.data.tokenizer import read_tokenizer
from shoal.export.check import Check, check
from shoal.export.destination import ENDINGS, check_destination, size_of, staged
from shoal.export.gguf import write_gguf
from shoal.export.hugging_face import write_hugging_face
from shoal.export.onnx import write_onnx
from shoal.export.program import Program, write_program
from shoal.export.subject import Subject
from shoal.train.foreign import is_foreign
from shoal.train.models import read_model

TYPES = {"hf": ("fp32", "bf16", "fp16"), "gguf": ("fp32", "bf16", "fp16", "q8_0"), "onnx": ("fp32",), "torch": ("fp32",)}
"""Which types of weights a format may have."""

UNCHECKED = {
    "hf": "transformers has no place for the model's head, and reads it without",
    "onnx": "no onnxruntime here: pip install 'shoal[export]'",
}


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal export`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run's folder, a model's, or an adapter's, which is merged into its model."""
    format: Literal["hf", "gguf", "onnx", "torch"]
    """A folder for transformers, a file for llama.cpp, a folder for onnxruntime, or a .pt2 of torch.export."""
    out: Path | None = None
    """Where to; by default NAME-hf, NAME.gguf, NAME-onnx or NAME.pt2 in the current folder."""
    dtype: Literal["fp32", "bf16", "fp16", "q8_0"] = "fp32"
    """Of the weights: hf has fp32, bf16 and fp16, gguf these and q8_0, the others fp32."""
    check: bool = True
    """Run what was written, and compare it with the model."""
    replace: bool = False
    """Replace an earlier export of the same format."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Write the model; returns where, how large, and how near to the model."""
    kind, began = arguments.format, time.perf_counter()
    if arguments.dtype not in TYPES[kind]:
        raise InputError(f"--dtype {arguments.dtype} is not for --format {kind}; accepted there: {', '.join(TYPES[kind])}")
    source = find_model_directory(arguments.model)
    path = arguments.out or Path(_name(arguments.model) + ENDINGS[kind])
    check_destination(path, kind, source, arguments.replace)
    subject = _read(arguments.model)
    with staged(path) as new:
        if kind == "hf":
            write_hugging_face(new, subject, arguments.dtype)
        elif kind == "gguf":
            write_gguf(new, subject, arguments.dtype)
        elif kind == "onnx":
            write_onnx(new, subject, Program(subject.model))
        else:
            write_program(new, Program(subject.model))
        checked = check(kind, new, subject, arguments.dtype) if arguments.check else None
    result: dict[str, Any] = {
        "model": str(arguments.model), "format": kind, "dtype": arguments.dtype, "path": str(path), "bytes": size_of(path),
        "check": None if checked is None else asdict(checked), "seconds": time.perf_counter() - began,
    }  # fmt: skip
    if not arguments.json:
        unchecked = UNCHECKED.get(kind, "") if arguments.check else "as asked"
        told = f"not checked: {unchecked}" if checked is None else _told(checked)
        what = f"{path}: {result['bytes'] / 1e6:,.1f} MB, {arguments.dtype}\n{told}"
        Console(highlight=False, markup=False).print(what, soft_wrap=True)
    return result


def _name(model: Path) -> str:
    """What the export is called by default: as the run, or as the model's folder."""
    named = model.absolute()
    return named.parent.name if named.name == "model" and (named.parent / "recipe.yaml").exists() else named.name


def _read(folder: Path) -> Subject:
    source = find_model_directory(folder)
    if is_foreign(source):
        said = read_json(source / "config.json")
        raise InputError(
            f"{folder}: a model that Shoal has no code of its own for ({said['model_type']}); its folder is in the Hugging "
            "Face layout, and other formats are for the tools of transformers"
        )
    model = read_model(build_recipe({"model": {"init_from": str(folder)}}).model).eval().requires_grad_(False)
    tokenizer = read_tokenizer(source)
    if tokenizer.vocabulary > model.config.vocabulary:
        raise InputError(f"{folder}: its tokenizer has {tokenizer.vocabulary} tokens, its model {model.config.vocabulary}")
    card = source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    return Subject(_name(folder), model, tokenizer, read_json(source / "config.json"), text)


def _told(checked: Check) -> str:
    rounding = f"; rounding the weights changes them by up to {checked.rounding:.2g}" if checked.rounding else ""
    return (
        f"as the model, run by {checked.runtime} on {checked.tokens} tokens: outputs differ by up to "
        f"{checked.difference:.2g}{rounding}"
    )
