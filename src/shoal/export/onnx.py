"""ONNX: a folder with `model.onnx`, which `onnxruntime` runs, and the tokenizer beside it.

Batch and length are free. What the inputs and outputs are called says `export.program`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from shoal.core.extras import library, silenced
from shoal.core.files import write_json
from shoal.export.program import Program, exported
from shoal.export.subject import Subject

LARGEST = 1_900_000_000
"""Bytes of weights that fit into one file: protobuf's are of 2 GB at most. What is more goes to `model.onnx.data`."""


def write_onnx(folder: Path, subject: Subject, program: Program) -> None:
    """Write the folder; `InputError` where the libraries are missing."""
    for name in ("onnx", "onnxscript"):
        library(name, "export")
    folder.mkdir()
    size = sum(value.nbytes for value in program.state_dict().values())
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            exported(program), (), str(folder / "model.onnx"), dynamo=True, external_data=size > LARGEST,
            input_names=program.inputs, output_names=program.outputs,
        )  # fmt: skip
    write_json(folder / "config.json", dict(subject.said))
    subject.tokenizer.write(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words on its progress, which would stand beside a command's JSON."""
    with silenced("onnxscript", "torch.onnx"), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
