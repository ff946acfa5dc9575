"""Weights and configuration in and out of the Hugging Face layout: GPT-2, Llama and Qwen3.

Pure mapping between dictionaries: names, the transposed `Conv1D` of GPT-2, and Shoal's fused `qkv`. Nothing is read or
written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from shoal.models.dropout import changed, dropout_from_hugging_face, dropout_to_hugging_face
from shoal.models.transformer import Transformer, TransformerConfig

Family = Literal["gpt2", "llama", "qwen3"]

_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu", "relu2": "relu2"}
_COMPUTED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Tensors that old checkpoints hold though they are computed, not learned."""
_ARCHITECTURE = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True)
class Names:
    """Where a family keeps what: prefixes, and per block our module to theirs."""

    prefix: str
    embedding: str
    position: str | None
    block: str
    norm: str
    modules: tuple[tuple[str, str], ...]
    transposed: bool


_GPT2 = Names(
    "transformer.", "wte", "wpe", "h", "ln_f",
    (("attention_norm", "ln_1"), ("attention.out", "attn.c_proj"), ("mlp_norm", "ln_2"),
     ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")),
    transposed=True,
)  # fmt: skip
_LLAMA = Names(
    "model.", "embed_tokens", None, "layers", "norm",
    (("attention_norm", "input_layernorm"), ("attention.out", "self_attn.o_proj"),
     ("attention.query_norm", "self_attn.q_norm"), ("attention.key_norm", "self_attn.k_norm"),
     ("mlp_norm", "post_attention_layernorm"),
     ("mlp.gate", "mlp.gate_proj"), ("mlp.up", "mlp.up_proj"), ("mlp.down", "mlp.down_proj")),
    transposed=False,
)  # fmt: skip


def family(config: TransformerConfig) -> Family:
    """The Hugging Face architecture that computes exactly this; `ValueError` when there is none."""
    if config.positions == "learned" and config.norm == "layer" and config.bias and not config.gated:
        if config.qk_norm or config.kv_heads != config.heads or config.head_dim * config.heads != config.dim:
            raise ValueError("GPT-2's layout has neither grouped heads, nor normalised ones, nor a head_dim of its own")
        return "gpt2"
    if config.positions == "rotary" and config.norm == "rms" and config.gated and not config.bias:
        return "qwen3" if config.qk_norm else "llama"
    raise ValueError("no Hugging Face architecture has this mix of positions, norm, MLP and biases")


def config_to_hugging_face(config: TransformerConfig, end_of_text: int | None = None) -> dict[str, Any]:
    """The content of `config.json`."""
    kind = family(config)
    common: dict[str, Any] = {
        "architectures": [_ARCHITECTURE[kind]], "model_type": kind, "vocab_size": config.vocabulary,
        "tie_word_embeddings": config.tied, "bos_token_id": end_of_text, "eos_token_id": end_of_text, "dtype": "float32",
    }  # fmt: skip
    activation = {"gelu": "gelu_pytorch_tanh"}.get(config.activation, config.activation)
    if kind == "gpt2":
        activation = {"gelu": "gelu_new"}.get(config.activation, config.activation)
        return common | {
            "n_positions": config.context, "n_embd": config.dim, "n_layer": config.layers, "n_head": config.heads,
            "n_inner": config.hidden, "activation_function": activation, "layer_norm_epsilon": config.norm_epsilon,
            **dropout_to_hugging_face(kind, config),
        }  # fmt: skip
    return common | {
        "max_position_embeddings": config.context, "hidden_size": config.dim, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "intermediate_size": config.hidden, "hidden_act": activation, "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta, "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "attention_bias": False, "mlp_bias": False, **dropout_to_hugging_face(kind, config),
    }  # fmt: skip


def config_from_hugging_face(config: Mapping[str, Any]) -> TransformerConfig:
    """Read `config.json`; `ValueError` for a model that Shoal does not compute exactly."""
    kind = config.get("model_type")
    try:
        if kind == "gpt2":
            return _gpt2_config(config)
        if kind in ("llama", "qwen3"):
            return _llama_config(config, kind)
    except KeyError as error:
        raise ValueError(f"config.json has no {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"config.json is damaged: {error}") from None
    raise ValueError(f"model type '{kind}' is not supported; supported: {', '.join(_ARCHITECTURE)}")


def _gpt2_config(config: Mapping[str, Any]) -> TransformerConfig:
    rescaled = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    if any(config.get(key) for key in rescaled) or not config.get("scale_attn_weights", True):
        raise ValueError("GPT-2 variants with rescaled attention are not supported")
    dim, heads = _whole(config, "n_embd"), _whole(config, "n_head")
    if dim % heads:
        raise ValueError(f"config.json: 'n_embd' ({dim}) must be a multiple of 'n_head' ({heads})")
    return TransformerConfig(
        vocabulary=_whole(config, "vocab_size"), context=_whole(config, "n_positions"), layers=_whole(config, "n_layer"),
        dim=dim, heads=heads, kv_heads=heads, head_dim=dim // heads, hidden=_whole(config, "n_inner", 4 * dim),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5), **dropout_from_hugging_face("gpt2", config),
        activation=_activation(config.get("activation_function", "gelu_new")),
        tied=config.get("tie_word_embeddings", True),
    )  # fmt: skip


def _llama_config(config: Mapping[str, Any], kind: str) -> TransformerConfig:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"rotary positions of type '{rope_type}' are not supported, only 'default'")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("Llama variants with biases are not supported")
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or []):
        raise ValueError("sliding-window attention is not supported")
    dim, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    return TransformerConfig(
        vocabulary=_whole(config, "vocab_size"), context=_whole(config, "max_position_embeddings"),
        layers=_whole(config, "num_hidden_layers"), dim=dim, heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head_dim=_whole(config, "head_dim", 128 if kind == "qwen3" else dim // heads),
        hidden=_whole(config, "intermediate_size"), positions="rotary", norm="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        activation=_activation(config.get("hidden_act", "silu")), gated=True, qk_norm=kind == "qwen3", bias=False,
        tied=config.get("tie_word_embeddings", False), **dropout_from_hugging_face(kind, config),
        rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
    )  # fmt: skip


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config[key] if default is None else config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: '{key}' is {value!r}, not a whole number above 0")
    return value


def _activation(name: str) -> Any:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ValueError(f"activation '{name}' is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def weights_to_hugging_face(model: Transformer) -> dict[str, Tensor]:
    """The model's weights under the names, and in the orientation, of its Hugging Face architecture."""
    names, config = _names(model.config), model.config
    ours = {name: value.detach() for name, value in model.state_dict().items()}
    theirs = {f"{names.prefix}{names.embedding}.weight": ours["embedding.weight"]}
    if names.position:
        theirs[f"{names.prefix}{names.position}.weight"] = ours["position.weight"]
    for layer in range(config.layers):
        block = f"{names.prefix}{names.block}.{layer}."
        for kind in ("weight", "bias"):
            for mine, other in names.modules:
                value = ours.get(f"blocks.{layer}.{mine}.{kind}")
                if value is not None:
                    theirs[f"{block}{other}.{kind}"] = _orient(value, names)
            fused = ours.get(f"blocks.{layer}.attention.qkv.{kind}")
            if fused is None:
                continue
            query, key, value = split_qkv(fused, config)
            if names.transposed:
                theirs[f"{block}attn.c_attn.{kind}"] = _orient(torch.cat((query, key, value)), names)
            else:
                theirs |= {f"{block}self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", (query, key, value), strict=True)}
    for kind in ("weight", "bias"):
        if f"norm.{kind}" in ours:
            theirs[f"{names.prefix}{names.norm}.{kind}"] = ours[f"norm.{kind}"]
    if not config.tied:
        theirs["lm_head.weight"] = ours["head.weight"]
    return {name: value.contiguous() for name, value in theirs.items()}


def weights_from_hugging_face(theirs: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Shoal's state dict from a Hugging Face one; `ValueError` names what is missing, misshapen or left over."""
    names = _names(config)
    prefix = names.prefix if any(name.startswith(names.prefix) for name in theirs) else ""
    shapes = {name: tuple(value.shape) for name, value in Transformer(config).state_dict().items()}
    left = {name for name in theirs if not name.endswith(_COMPUTED)} - ({"lm_head.weight"} if config.tied else set())

    def take(name: str, shape: tuple[int, ...], orient: bool = False) -> Tensor:
        if name not in theirs:
            raise ValueError(f"the weights have no '{name}'")
        value = theirs[name]
        asked = shape[::-1] if orient and names.transposed else shape
        if value.shape != asked:
            raise ValueError(f"'{name}' has the shape {list(value.shape)}, config.json asks for {list(asked)}")
        left.discard(name)
        return _orient(value, names) if orient else value

    ours = {"embedding.weight": take(f"{prefix}{names.embedding}.weight", shapes["embedding.weight"])}
    if names.position:
        ours["position.weight"] = take(f"{prefix}{names.position}.weight", shapes["position.weight"])
    kinds = ("weight", "bias") if config.bias else ("weight",)
    for layer in range(config.layers):
        block = f"{prefix}{names.block}.{layer}."
        for kind in kinds:
            for mine, other in names.modules:
                if mine.endswith(("query_norm", "key_norm")) and not config.qk_norm:
                    continue
                here = f"blocks.{layer}.{mine}.{kind}"
                ours[here] = take(f"{block}{other}.{kind}", shapes[here], orient=True)
            here = f"blocks.{layer}.attention.qkv.{kind}"
            if names.transposed:
                query, key, value = take(f"{block}attn.c_attn.{kind}", shapes[here], orient=True).chunk(3)
            else:
                rows = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
                query, key, value = (
                    take(f"{block}self_attn.{name}_proj.{kind}", (heads * config.head_dim, *shapes[here][1:]))
                    for name, heads in rows.items()
                )
            ours[here] = fuse_qkv(query, key, value, config)
    for kind in kinds:
        ours[f"norm.{kind}"] = take(f"{prefix}{names.norm}.{kind}", shapes[f"norm.{kind}"])
    if not config.tied:
        ours["head.weight"] = take("lm_head.weight", shapes["head.weight"])
    if left:
        raise ValueError(f"the weights have '{min(left)}', for which config.json has no place")
    return {name: value.float() for name, value in ours.items()}


def split_qkv(fused: Tensor, config: TransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, heads in order, out of the grouped layout (weights and biases alike)."""
    rest = fused.shape[1:]
    grouped = fused.view(config.kv_heads, -1, config.head_dim, *rest)
    query, key, value = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return query.reshape(-1, *rest), key.reshape(-1, *rest), value.reshape(-1, *rest)


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, config: TransformerConfig) -> Tensor:
    """The inverse of `split_qkv`."""
    rest = query.shape[1:]
    parts = [part.view(config.kv_heads, -1, config.head_dim, *rest) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], **dropouts: float | None) -> Transformer:
    """A model from the content of `config.json` and its weights, perhaps with other rates of dropout and layer drop.

    `ValueError` when they don't fit.
    """
    shape = replace(config_from_hugging_face(config), **changed(dropouts))
    ours = weights_from_hugging_face(weights, shape)
    model = Transformer(shape).materialise()
    model.load_state_dict(ours)
    return model


def _names(config: TransformerConfig) -> Names:
    return _GPT2 if family(config) == "gpt2" else _LLAMA


def _orient(value: Tensor, names: Names) -> Tensor:
    return value.T if names.transposed and value.dim() == 2 else value
