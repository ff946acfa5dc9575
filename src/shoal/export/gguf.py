"""GGUF, the file of llama.cpp: shape, weights and tokenizer in one, for GPT-2, Llama and Qwen3 shapes.

llama.cpp computes each architecture in one way only. What differs from that is refused: encoders, heads of fine-tuning, and
other activations than GELU in its tanh form for GPT-2 and SiLU for Llama and Qwen3. Rows of the vocabulary beyond the
tokenizer's, which Shoal never writes either, are left out. Matrices are in the type asked for, all else in fp32.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError
from shoal.core.extras import library
from shoal.export.gguf_tokenizer import add_tokenizer
from shoal.export.subject import Subject
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig

ACTIVATIONS = {"gpt2": "gelu", "llama": "silu", "qwen3": "silu"}
"""By `model_type`, which llama.cpp names alike: the activation that it computes."""

DTYPES = {"fp32": ("F32", "ALL_F32"), "fp16": ("F16", "MOSTLY_F16"), "bf16": ("BF16", "MOSTLY_BF16"),
          "q8_0": ("Q8_0", "MOSTLY_Q8_0")}  # fmt: skip
"""Names of the type, and of files of it, in the `gguf` package."""

TURNED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""GPT-2's matrices that the Hugging Face layout has the other way round."""

BLOCK = 32
"""Weights that share a scale in q8_0: rows that aren't made of such blocks are in fp16."""


def check_shape(config: TransformerConfig) -> str:
    """llama.cpp's name of the architecture; `InputError` for one that it would compute otherwise."""
    instead = "; export to onnx, torch or hf instead"
    if not config.causal or config.head:
        kind = f"a model that scores ({config.head})" if config.head else "an encoder"
        raise InputError(f"GGUF is written of decoders that go on with a text, and this is {kind}{instead}")
    try:
        kind = hugging_face.family(config)
    except ValueError as error:
        raise InputError(f"llama.cpp has no architecture for this shape: {error}{instead}") from None
    if config.activation != ACTIVATIONS[kind]:
        raise InputError(
            f"llama.cpp computes {kind} with the activation {ACTIVATIONS[kind]}, this model has {config.activation}{instead}"
        )
    return kind


def write_gguf(path: Path, subject: Subject, dtype: str = "fp32") -> None:
    """Write the file; `InputError` for what llama.cpp can't hold."""
    gguf = library("gguf", "export")
    kind = check_shape(subject.model.config)
    name, file_type = DTYPES[dtype]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name(subject.name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, subject.model.config, subject.tokenizer.vocabulary)
    add_tokenizer(writer, subject)
    for tensor, value in tensors(subject, kind):
        chosen = gguf.GGMLQuantizationType[name if value.ndim == 2 and tensor != "position_embd.weight" else "F32"]
        if chosen == gguf.GGMLQuantizationType.Q8_0 and value.shape[-1] % BLOCK:
            chosen = gguf.GGMLQuantizationType.F16
        writer.add_tensor(tensor, gguf.quants.quantize(value, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(subject: Subject, kind: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Weights under llama.cpp's names, in its order of rows, in fp32."""
    gguf, config = library("gguf", "export"), subject.model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, config.layers)
    for theirs, weight in hugging_face.weights_to_hugging_face(subject.model).items():
        value = weight.float().cpu().numpy()
        module = theirs.rpartition(".")[0]
        if module.endswith(TURNED) and value.ndim == 2:
            value = value.T
        if kind == "llama" and module.endswith(("q_proj", "k_proj")):
            value = _paired(value, config.head_dim)
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if name in ("token_embd.weight", "output.weight"):
            value = value[: subject.tokenizer.vocabulary]
        yield name, np.ascontiguousarray(value)


def _paired(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of a head in pairs that are turned together: i and i + E/2 of ours are 2i and 2i + 1 of llama.cpp's Llama."""
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _add_shape(writer: Any, config: TransformerConfig, vocabulary: int) -> None:
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    if config.positions == "learned":
        writer.add_layer_norm_eps(config.norm_epsilon)
        return
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
