"""GGUF: the same logits and the same tokens, in `transformers`' reader of it and in llama.cpp."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from tokenizers import normalizers

from shoal.core.errors import InputError
from shoal.data.chat_template import DEFAULT
from shoal.data.tokenizer import TextTokenizer, read_tokenizer
from shoal.data.unigram import train_unigram
from shoal.data.wordpiece import train_wordpiece
from shoal.export.check import check
from shoal.export.gguf import check_shape, tensors, write_gguf
from shoal.export.gguf_tokenizer import QWEN2_PATTERN, spelling
from shoal.export.subject import Subject
from shoal.models import hugging_face
from shoal.models.decoding import Decoding, decode
from tests.conftest import fixed_text
from tests.export.subjects import SHAPES, subject, tokenizers

gguf = pytest.importorskip("gguf")

TEXTS = (
    "The shoal, it's 12,345 fish.", "  two  spaces,\ttabs\n\n\nand lines \n", "déjà vu… 一群鱼 🐟 çok", 
    "DON'T we'll I'M x_y(z)[0]", "", " ", "<|endoftext|> is text",
)  # fmt: skip
WIDE: dict[str, Any] = {"dim": 32, "hidden": 64, "head_dim": 8}
"""Rows that blocks of 32 fit into."""


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_transformers_reads_the_same_logits_from_the_file(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for shape, words in (("gpt2", "gpt-2"), ("llama", "smaug-bpe"), ("qwen3", "gpt-2")):
        model = subject(shape, words)
        write_gguf(tmp_path / "model.gguf", model)
        vocabulary = model.tokenizer.vocabulary
        said = hugging_face.config_to_hugging_face(replace(model.model.config, vocabulary=vocabulary))
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="model.gguf", config=transformers.AutoConfig.for_model(**said), dtype=torch.float32
        )
        tokens = torch.randint(vocabulary, (2, 24), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model.model.project(model.model(tokens))[..., :vocabulary]
            torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=1e-4)


def test_what_the_file_says_of_the_model(tmp_path: Path) -> None:
    model = subject("qwen3")
    write_gguf(tmp_path / "model.gguf", model)
    said, config = fields(tmp_path / "model.gguf"), model.model.config
    assert said["general.architecture"] == "qwen3"
    assert said["general.name"] == "qwen3"
    numbers = {
        "context_length": config.context, "embedding_length": config.dim, "block_count": config.layers,
        "feed_forward_length": config.hidden, "attention.head_count": config.heads, "rope.freq_base": config.rope_theta,
        "attention.head_count_kv": config.kv_heads, "attention.key_length": config.head_dim,
        "vocab_size": model.tokenizer.vocabulary,
    }  # fmt: skip
    assert {name: said[f"qwen3.{name}"] for name in numbers} == numbers


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "q8_0"])
def test_matrices_have_the_type_that_is_asked_for_and_all_else_is_exact(dtype: str, tmp_path: Path) -> None:
    model = subject("gpt2", **WIDE)
    write_gguf(tmp_path / "model.gguf", model, dtype)
    exact = dict(tensors(model, "gpt2"))
    for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        matrix = exact[tensor.name].ndim == 2 and tensor.name != "position_embd.weight"
        kind = {"fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[dtype] if matrix else "F32"
        assert tensor.tensor_type.name == kind
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(exact[tensor.name].shape)
        largest = np.abs(exact[tensor.name]).max()
        np.testing.assert_allclose(found, exact[tensor.name], rtol=0, atol=largest * (0 if kind == "F32" else 2**-7))


def test_rows_that_blocks_do_not_fit_into_are_in_fp16(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", subject("gpt2"), "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == "F16"


def test_the_file_has_the_tokenizer(tmp_path: Path) -> None:
    model = subject("llama")
    write_gguf(tmp_path / "model.gguf", model)
    said, tokenizer = fields(tmp_path / "model.gguf"), model.tokenizer
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert said["tokenizer.ggml.pre"] == "gpt-2"
    tokens = said["tokenizer.ggml.tokens"]
    assert tokens == [tokenizer.library.id_to_token(number) for number in range(tokenizer.vocabulary)]
    control = [number for number, kind in enumerate(said["tokenizer.ggml.token_type"]) if kind == gguf.TokenType.CONTROL]
    assert control == sorted(tokenizer.special_tokens.values())
    merges = json.loads(tokenizer.library.to_str())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
    assert said["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert said["tokenizer.ggml.add_bos_token"] is False


def test_a_dialogue_ends_at_its_turns_and_its_template_is_plain_jinja(tmp_path: Path) -> None:
    model = subject("llama")
    chatting = TextTokenizer(model.tokenizer.library, model.tokenizer.end, {"chat_template": DEFAULT})
    write_gguf(tmp_path / "model.gguf", replace(model, tokenizer=chatting, said={"eos_token_id": 1}))
    said = fields(tmp_path / "model.gguf")
    assert (said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.eot_token_id"]) == (model.tokenizer.end_of_text, 1)
    turns = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "12"}]
    text = jinja2.Template(said["tokenizer.chat_template"]).render(messages=turns, add_generation_prompt=True)
    assert text == "<|user|>how many?<|end|><|assistant|>12<|end|><|assistant|>"


def test_each_way_of_cutting_text_into_words_has_its_name() -> None:
    def changed(name: str, change: Callable[[dict[str, Any]], None]) -> str:
        tree = json.loads(tokenizers()[name].library.to_str())
        change(tree)
        return spelling(TextTokenizer(type(tokenizers()[name].library).from_str(json.dumps(tree)), "<|endoftext|>", {}))[0]

    def as_qwen2(tree: dict[str, Any]) -> None:
        tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = QWEN2_PATTERN
        tree["normalizer"] = {"type": "NFC"}

    assert spelling(tokenizers()["gpt-2"])[0] == "gpt-2"
    assert spelling(tokenizers()["smaug-bpe"])[0] == "smaug-bpe"
    assert changed("smaug-bpe", lambda tree: tree["model"].update(ignore_merges=True)) == "llama-bpe"
    assert changed("smaug-bpe", as_qwen2) == "qwen2"


def test_characters_are_put_together_from_bytes() -> None:
    words, tokens, merges = spelling(tokenizers()["char"])
    first, second, third = tokens[int(tokenizers()["char"].encode("群")[0])]
    assert words == "gpt-2"
    assert merges.index(f"{first} {second}") < merges.index(f"{first}{second} {third}")


@pytest.mark.parametrize(
    ("shape", "changes", "expected"),
    [
        ("bert", {}, "GGUF is written of decoders that go on with a text, and this is an encoder; export to onnx"),
        ("by the last", {}, "and this is a model that scores (sequence)"),
        ("gpt2", {"activation": "gelu_erf"}, "llama.cpp computes gpt2 with the activation gelu, this model has gelu_erf"),
        ("llama", {"activation": "relu2"}, "llama.cpp computes llama with the activation silu, this model has relu2"),
        ("gpt2", {"positions": "rotary"}, "llama.cpp has no architecture for this shape"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(shape: str, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as failed:
        check_shape(replace(SHAPES[shape], **changes))
    assert expected in str(failed.value)


def test_tokenizers_that_llama_cpp_has_no_like_of_are_refused() -> None:
    text = [fixed_text(100)]
    lower = tokenizers()["gpt-2"].library.from_str(tokenizers()["gpt-2"].library.to_str())
    lower.normalizer = normalizers.Lowercase()
    others = train_unigram(text, 268), train_wordpiece(text, 80), TextTokenizer(lower, "<|endoftext|>", {})
    for other in others:
        with pytest.raises(InputError, match=r"llama\.cpp has no like of the model's tokenizer"):
            spelling(other)


def llama(path: Path, context: int) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    fp32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(path), n_ctx=context, logits_all=True, type_k=fp32, type_v=fp32, n_gpu_layers=0, n_threads=1, verbose=False
    )


@pytest.mark.thorough
@pytest.mark.parametrize("words", ["gpt-2", "smaug-bpe", "char"])
@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
def test_llama_cpp_makes_the_same_tokens_and_writes_the_same_text(shape: str, words: str, tmp_path: Path) -> None:
    model = subject(shape, words, context=256, **WIDE)
    write_gguf(tmp_path / "model.gguf", model)
    theirs, tokenizer = llama(tmp_path / "model.gguf", 256), model.tokenizer
    known = TEXTS if words != "char" else ("Fish swims.", "12 o'clock;\n  déjà 一群🐟")
    for text in known:
        assert theirs.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).tolist()
    prompt, end = tokenizer.encode("every fish").tolist(), tokenizer.end_of_text
    (ours,) = decode(model.model, [prompt], Decoding(end, most=40, vocabulary=tokenizer.vocabulary))
    written = islice(theirs.generate(prompt, temp=0, top_k=1, repeat_penalty=1.0), 40)
    assert list(takewhile(lambda token: token != end, written)) == ours


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "q8_0"])
@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
def test_llama_cpp_computes_the_model_in_every_type(shape: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = subject(shape, context=256, **WIDE)
    write_gguf(tmp_path / "model.gguf", model, dtype)
    found = check("gguf", tmp_path / "model.gguf", model, dtype)
    assert found is not None
    assert found.runtime.startswith("llama-cpp-python")


def test_a_model_and_its_tokenizer_are_read_from_their_folder_alone(tmp_path: Path) -> None:
    model = subject("gpt2")
    model.tokenizer.write(tmp_path / "folder")
    again = Subject("again", model.model, read_tokenizer(tmp_path / "folder"), {})
    write_gguf(tmp_path / "one.gguf", replace(model, name="again"))
    write_gguf(tmp_path / "two.gguf", again)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
