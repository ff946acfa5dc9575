"""Weights in and out of the Hugging Face layout: the same logits there and here, or an error that says why not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from shoal.core.model_directory import read_model_directory, write_model_directory
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer
from tests.models.shapes import FAMILIES, GPT2, LLAMA, QWEN3, fill, random_model, random_tokens

VARIANTS = {
    "gpt2": GPT2,
    "gpt2 with squared relu": replace(GPT2, activation="relu2"),
    "gpt2 with silu, untied": replace(GPT2, activation="silu", tied=False),
    "gpt2 with the exact gelu": replace(GPT2, activation="gelu_erf"),
    "gpt2 with a large epsilon": replace(GPT2, norm_epsilon=1e-2),
    "llama": LLAMA,
    "llama, tied, one key head": replace(LLAMA, tied=True, kv_heads=1),
    "llama, ungrouped, other base": replace(LLAMA, kv_heads=4, rope_theta=500.0),
    "llama with wide heads, gelu": replace(LLAMA, head_dim=8, activation="gelu"),
    "llama with squared relu": replace(LLAMA, activation="relu2"),
    "qwen3": QWEN3,
    "qwen3, untied, ungrouped": replace(QWEN3, tied=False, kv_heads=4, norm_epsilon=1e-3),
}


def write(directory: Path, config: TransformerConfig) -> Transformer:
    model = random_model(config)
    theirs = hugging_face.weights_to_hugging_face(model)
    write_model_directory(directory, hugging_face.config_to_hugging_face(config, 3), theirs, lambda folder: None, "# A\n")
    return model


@torch.no_grad()
def assert_equal_logits(ours: Transformer, theirs: PreTrainedModel) -> None:
    tokens = random_tokens(ours.config)
    torch.testing.assert_close(ours.project(ours(tokens)), theirs.eval()(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_transformers_computes_the_same_logits_from_a_folder_that_shoal_wrote(
    tmp_path: Path, config: TransformerConfig
) -> None:
    model = write(tmp_path / "model", config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True, output_loading_info=True)
    theirs, report = loaded
    assert not any(report.values()), report
    assert theirs.config.eos_token_id == 3
    assert_equal_logits(model, theirs)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_shoal_reads_back_what_it_wrote_bitwise(tmp_path: Path, config: TransformerConfig) -> None:
    model = write(tmp_path / "model", config)
    again = hugging_face.build(*read_model_directory(tmp_path / "model"))
    assert again.config == config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


THEIRS: dict[str, PreTrainedModel] = {
    "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=37, n_positions=24, n_embd=16, n_layer=2, n_head=2, attn_pdrop=0.2)),
    "gpt2 with an inner width": GPT2LMHeadModel(
        GPT2Config(vocab_size=37, n_positions=24, n_embd=16, n_layer=1, n_head=4, n_inner=20, activation_function="relu2")
    ),
    "llama": LlamaForCausalLM(
        LlamaConfig(
            vocab_size=37, max_position_embeddings=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=24,
        )
    ),
    "llama, tied, wide heads": LlamaForCausalLM(
        LlamaConfig(
            vocab_size=37, max_position_embeddings=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            head_dim=12, intermediate_size=24, tie_word_embeddings=True, rms_norm_eps=1e-3,
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        )
    ),
    "qwen3": Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=37, max_position_embeddings=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, intermediate_size=24,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("theirs", THEIRS.values(), ids=THEIRS)
@pytest.mark.parametrize("size", ["5GB", "6KB"])
def test_shoal_computes_the_same_logits_from_a_folder_that_transformers_wrote(
    tmp_path: Path, theirs: PreTrainedModel, size: str
) -> None:
    fill(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (size == "6KB") == (tmp_path / "model.safetensors.index.json").exists()
    assert_equal_logits(hugging_face.build(*read_model_directory(tmp_path)).eval(), theirs)


def test_an_old_checkpoint_without_prefix_and_with_computed_tensors_is_read() -> None:
    model = random_model(GPT2)
    theirs = {
        name.removeprefix("transformer."): value for name, value in hugging_face.weights_to_hugging_face(model).items()
    }
    theirs |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 24, 24) for layer in range(2)}
    theirs |= {"h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": theirs["wte.weight"]}
    again = hugging_face.build(hugging_face.config_to_hugging_face(GPT2), theirs)
    assert torch.equal(again(random_tokens(GPT2)), model(random_tokens(GPT2)))


def test_a_copy_of_what_is_tied_must_be_equal_to_it() -> None:
    theirs = hugging_face.weights_to_hugging_face(random_model(GPT2))
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"] + 1
    with pytest.raises(ValueError, match=r"'lm_head.weight' and 'transformer.wte.weight' differ; .*tie_word_embeddings"):
        hugging_face.weights_from_hugging_face(theirs, GPT2)


def test_half_precision_weights_become_fp32() -> None:
    weights = hugging_face.weights_to_hugging_face(random_model(LLAMA))
    config = hugging_face.config_to_hugging_face(LLAMA)
    model = hugging_face.build(config, {name: value.bfloat16() for name, value in weights.items()})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


Changes = Mapping[str, Any]


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("gpt2", {"model_type": "t5"}, "model type 't5' is not supported; supported: gpt2, llama, qwen3, bert, modernbert"),
        ("gpt2", {"model_type": ["gpt2"]}, "model type '.'gpt2'.' is not supported"),
        ("gpt2", {"model_type": None}, "model type 'None' is not supported"),
        ("gpt2", {"scale_attn_weights": False}, "rescaled attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "rescaled attention"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "rescaled attention"),
        ("gpt2", {"activation_function": "relu"}, "activation 'relu' is not supported; supported: gelu, gelu_new"),
        ("gpt2", {"activation_function": ["relu"]}, "activation '.'relu'.' is not supported"),
        ("gpt2", {"activation_function": "gelu_10"}, "activation 'gelu_10' is not supported"),
        ("gpt2", {"n_head": 3}, r"'n_embd' \(16\) must be a multiple of 'n_head' \(3\)"),
        ("gpt2", {"n_embd": "16"}, "'n_embd' is '16', not a whole number above 0"),
        ("gpt2", {"n_embd": None}, "'n_embd' is None, not a whole number above 0"),
        ("gpt2", {"n_layer": 2.0}, "'n_layer' is 2.0, not a whole number above 0"),
        ("gpt2", {"n_head": 0}, "'n_head' is 0, not a whole number above 0"),
        ("gpt2", {"vocab_size": True}, "'vocab_size' is True, not a whole number above 0"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "of type 'llama3' are not supported"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "of type 'linear'"),
        ("llama", {"rope_parameters": "default"}, "config.json is damaged"),
        ("llama", {"attention_bias": True}, "biases are not supported"),
        ("llama", {"mlp_bias": True}, "biases are not supported"),
        ("llama", {"num_key_value_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ("llama", {"head_dim": 5}, r"head_dim \(5\) must be even"),
        ("llama", {"num_attention_heads": -4}, "'num_attention_heads' is -4, not a whole number above 0"),
        ("qwen3", {"use_sliding_window": True}, "sliding-window attention is not supported"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention"),
    ],
)
def test_a_model_that_shoal_would_not_compute_exactly_is_refused(family: str, changes: Changes, expected: str) -> None:
    config = hugging_face.config_to_hugging_face(FAMILIES[family]) | dict(changes)
    with pytest.raises(ValueError, match=expected):
        hugging_face.config_from_hugging_face(config)


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_config_without_a_key_that_it_needs_is_refused(key: str) -> None:
    config = hugging_face.config_to_hugging_face(GPT2)
    del config[key]
    with pytest.raises(ValueError, match=f"config.json has no '{key}'"):
        hugging_face.config_from_hugging_face(config)


@pytest.mark.parametrize(
    "config",
    [
        replace(GPT2, kv_heads=2),
        replace(GPT2, qk_norm=True),
        replace(GPT2, head_dim=8),
        replace(GPT2, bias=False),
        replace(LLAMA, gated=False),
        replace(LLAMA, norm="layer"),
        replace(GPT2, norm_first=False),
        replace(LLAMA, embedding_norm=True),
        replace(GPT2, head_bias=True),
    ],
)
def test_a_mix_that_no_architecture_computes_has_no_family(config: TransformerConfig) -> None:
    with pytest.raises(ValueError, match=r"Hugging Face architecture|GPT-2's layout"):
        hugging_face.family(config)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_every_missing_misshapen_or_needless_tensor_is_named(config: TransformerConfig) -> None:
    weights = hugging_face.weights_to_hugging_face(random_model(config))
    for name, value in weights.items():
        without = {other: tensor for other, tensor in weights.items() if other != name}
        with pytest.raises(ValueError, match=f"the weights have no '{name}'"):
            hugging_face.weights_from_hugging_face(without, config)
        for wrong in (value[:-1], value[None], value.repeat(2, *[1] * (value.dim() - 1))):
            with pytest.raises(ValueError, match=f"'{name}' has the shape .*, config.json asks for"):
                hugging_face.weights_from_hugging_face(weights | {name: wrong}, config)
    with pytest.raises(ValueError, match=r"the weights have 'adapter\.weight', for which config\.json has no place"):
        hugging_face.weights_from_hugging_face(weights | {"adapter.weight": torch.ones(1)}, config)


def test_a_config_with_fewer_layers_than_the_weights_is_refused() -> None:
    weights = hugging_face.weights_to_hugging_face(random_model(LLAMA))
    config = hugging_face.config_to_hugging_face(LLAMA) | {"num_hidden_layers": 1}
    with pytest.raises(ValueError, match=r"the weights have 'model\.layers\.1\.[a-z_.]+', for which"):
        hugging_face.build(config, weights)


@settings(deadline=None, max_examples=40)
@given(
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    dim=st.integers(1, 6),
    bias=st.booleans(),
)
def test_fusing_and_splitting_queries_keys_and_values_are_inverse(
    kv_heads: int, group: int, head_dim: int, dim: int, bias: bool
) -> None:
    config = replace(GPT2, heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim)

    def numbers(heads: int, start: float) -> Tensor:
        shape = (heads * head_dim,) if bias else (heads * head_dim, dim)
        return start + torch.arange(float(torch.Size(shape).numel())).view(shape)

    parts = numbers(config.heads, 0), numbers(kv_heads, 1e4), numbers(kv_heads, 2e4)
    fused = hugging_face.fuse_qkv(*parts, config)
    for part, again in zip(parts, hugging_face.split_qkv(fused, config), strict=True):
        assert torch.equal(part, again)
    assert torch.equal(hugging_face.fuse_qkv(*hugging_face.split_qkv(fused, config), config), fused)
    # cut into one piece a key head, every piece still holds whole heads: a group of queries, their key, their value
    for piece in fused.chunk(kv_heads):
        assert len(piece) == (group + 2) * head_dim
