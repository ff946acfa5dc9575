"""Is what was written the model? Run by who will run it, on a sample text, next to the model itself.

Two differences, each the largest of any output: to the model with its weights rounded as the file has them, which is what
writing and reading got wrong and must be nothing but the order of sums; and of that to the model as it is, which is what
the type costs. llama.cpp looks GPT-2's GELU up in a table of fp16, and multiplies fp16 and q8_0 by activations that are
rounded alike, so it differs by more.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import InputError, ShoalError
from shoal.core.extras import library, silenced
from shoal.core.files import read_json
from shoal.export.gguf import BLOCK
from shoal.export.hugging_face import DTYPES
from shoal.export.program import Program
from shoal.export.subject import Subject
from shoal.models import hugging_face
from shoal.models.hugging_face.heads import is_theirs
from shoal.models.transformer import Transformer

TEXT = "The shoal: it's 12 fish  in 3 rows,\n\n\tand if fish > 10 they say 'déjà vu'…\n 一群鱼 🐟 we're 1,234,567. "

ALLOWED = 1e-4
"""Of the largest output, or of 1 where that is less."""

ALLOWED_LLAMA = {"fp32": 5e-3, "bf16": 5e-2, "fp16": 2e-2, "q8_0": 1e-1}
"""The same of llama.cpp, by the type of its file."""


@dataclass(frozen=True)
class Check:
    """`difference` from the rounded model, what is `allowed` of it, and what `rounding` changes; `runtime`: who ran it."""

    runtime: str
    difference: float
    allowed: float
    rounding: float
    tokens: int


@dataclass(frozen=True)
class Sample:
    """Two rows of tokens [2, length], the second padded from its middle on; the text that they are of.

    `whole`: outputs are of rows, not of tokens.
    """

    text: str
    tokens: Tensor
    mask: Tensor
    whole: bool

    @classmethod
    def of(cls, subject: Subject) -> "Sample":
        """As much of the sample text as the model's context has room for; of characters, those that it knows."""
        tokenizer, text = subject.tokenizer, TEXT
        try:
            ids = tokenizer.encode(text)
        except InputError:
            text = "".join(
                sorted(token for token in tokenizer.library.get_vocab(with_added_tokens=False) if len(token) == 1)
            )
            ids = tokenizer.encode(text)
        row = torch.from_numpy(ids)[: subject.model.config.context]
        mask = torch.ones(2, len(row), dtype=torch.int64)
        mask[1, len(row) // 2 + 1 :] = 0
        return cls(text, row * mask, mask, subject.model.config.head == "sequence")

    def inputs(self, program: Program) -> dict[str, Tensor]:
        """What a program takes, by name."""
        given = {"input_ids": self.tokens, "attention_mask": self.mask, "token_type_ids": torch.zeros_like(self.mask)}
        return {name: given[name] for name in program.inputs}

    def told(self, output: Tensor) -> Tensor:
        """An output where there is text: [rows, ...] as it is, [rows, tokens, ...] without padding."""
        return output if self.whole else output[self.mask.bool()]


def check(kind: str, path: Path, subject: Subject, dtype: str = "fp32") -> Check | None:
    """Run what was written to `path`; None where nothing here runs it. `ShoalError` where it is another model."""
    sample, plain = Sample.of(subject), Program(subject.model)
    rounded = plain if dtype == "fp32" else Program(_rounded(subject.model, dtype, matrices_alone=kind == "gguf"))
    with _quiet(), torch.no_grad():
        found = {"hf": _transformers, "gguf": _gguf, "onnx": _onnxruntime, "torch": _torch}[kind](path, subject, sample)
        if found is None:
            return None
        runtime, outputs = found
        # GGUF has no rows of the vocabulary that no token has
        cut = slice(subject.tokenizer.vocabulary if kind == "gguf" else None)
        wanted, whole = (
            [sample.told(output)[..., cut] for output in program(*sample.inputs(program).values())]
            for program in (rounded, plain)
        )
    share = ALLOWED_LLAMA[dtype] if runtime.startswith("llama") else ALLOWED
    allowed = share * max(1.0, *(float(output.abs().max()) for output in wanted))
    result = Check(runtime, _largest(outputs, wanted), allowed, _largest(wanted, whole), int(sample.mask.sum()))
    if not result.difference <= result.allowed:
        raise ShoalError(
            f"{runtime} computes something else of the export than the model: outputs differ by up to "
            f"{result.difference:.2g}, {result.allowed:.2g} may be; nothing was kept"
        )
    return result


def _largest(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference; NaN, which is no allowed one, where there is one."""
    differences = [(one.double() - other.double()).abs().max() for one, other in zip(found, wanted, strict=True)]
    return float(torch.stack(differences).max())


def _rounded(model: Transformer, dtype: str, matrices_alone: bool) -> Transformer:
    """The model with its weights as a file of this type has them; `matrices_alone`: the others are in fp32 there."""
    copy = deepcopy(model)
    for name, parameter in copy.named_parameters():
        if not matrices_alone or (parameter.dim() == 2 and name != "position.weight"):
            parameter.data = _in_blocks(parameter) if dtype == "q8_0" else parameter.to(DTYPES[dtype]).float()
    return copy


def _in_blocks(weight: Tensor) -> Tensor:
    gguf = library("gguf", "export")
    kind = gguf.GGMLQuantizationType.F16 if weight.shape[1] % BLOCK else gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), kind), kind))


Ran = tuple[str, list[Tensor]]
"""(who ran it, its outputs where there is text)."""


def _transformers(folder: Path, subject: Subject, sample: Sample) -> Ran | None:
    import transformers

    config = subject.model.config
    if config.head and not is_theirs(hugging_face.family(config), config):
        return None
    architecture = getattr(transformers, read_json(folder / "config.json")["architectures"][0])
    model = architecture.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    return f"transformers {transformers.__version__}", _by_rows(model, subject, sample)


def _by_rows(model: Any, subject: Subject, sample: Sample) -> list[Tensor]:
    """Each row by itself: what padding gets there is its own matter."""
    program = Program(subject.model)
    rows = []
    for tokens, mask in zip(sample.tokens, sample.mask, strict=True):
        row = Sample(sample.text, tokens[None, mask.bool()], mask[None, mask.bool()], sample.whole)
        outputs = model(**row.inputs(program))
        rows.append([row.told(outputs[name]).float() for name in program.outputs])
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def _onnxruntime(folder: Path, subject: Subject, sample: Sample) -> Ran | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    program = Program(subject.model)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    told = session.run(program.outputs, {name: value.numpy() for name, value in sample.inputs(program).items()})
    return f"onnxruntime {onnxruntime.__version__}", [sample.told(torch.from_numpy(output)) for output in told]


def _torch(path: Path, subject: Subject, sample: Sample) -> Ran:
    program = Program(subject.model)
    with path.open("rb") as file:
        told = torch.export.load(file).module()(*sample.inputs(program).values())
    return f"torch {torch.__version__}", [sample.told(output) for output in told]


def _gguf(path: Path, subject: Subject, sample: Sample) -> Ran:
    if importlib.util.find_spec("llama_cpp") is not None:
        return _llama(path, subject, sample)
    import transformers

    said = hugging_face.config_to_hugging_face(subject.model.config) | {"vocab_size": subject.tokenizer.vocabulary}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=transformers.AutoConfig.for_model(**said), dtype=torch.float32
    )
    return f"transformers {transformers.__version__}, its reader of GGUF", _by_rows(model.eval(), subject, sample)


def _llama(path: Path, subject: Subject, sample: Sample) -> Ran:
    import llama_cpp

    fp32 = llama_cpp.GGML_TYPE_F32  # of keys and values, which are fp16 else
    llama = llama_cpp.Llama(
        str(path), n_ctx=subject.model.config.context, logits_all=True, type_k=fp32, type_v=fp32, n_gpu_layers=0,
        n_threads=torch.get_num_threads(), verbose=False,
    )  # fmt: skip
    if (made := llama.tokenize(sample.text.encode(), add_bos=False)) != subject.tokenizer.encode(sample.text).tolist():
        raise ShoalError(f"llama.cpp makes other tokens of {sample.text!r} than the model's tokenizer: {made}")
    rows = []
    for tokens, mask in zip(sample.tokens, sample.mask, strict=True):
        llama.reset()
        llama.eval(tokens[mask.bool()].tolist())
        rows.append(torch.from_numpy(llama.scores[: int(mask.sum())].copy()))
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}", [torch.cat(rows)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own words, printed ones too."""
    with silenced("transformers"), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
