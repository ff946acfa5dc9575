"""GPT-2, Llama and Qwen3."""

from collections.abc import Iterator, Mapping
from typing import Any

from shoal.models.hugging_face.family import Family, activation, head_width, whole
from shoal.models.hugging_face.rules import Rule, qkv_in_one, qkv_in_three, turned
from shoal.models.transformer import TransformerConfig


def kind_of(config: TransformerConfig) -> str:
    """The decoder family that computes exactly this; `ValueError` when there is none."""
    plain = config.norm_first and config.first_norm and not config.embedding_norm
    headless = not (config.transform or config.head_bias or config.pooler or config.segments)
    if plain and headless and config.positions == "learned" and config.norm == "layer" and config.bias and not config.gated:
        if config.qk_norm or config.kv_heads != config.heads or config.head_dim * config.heads != config.dim:
            raise ValueError("GPT-2's layout has neither grouped heads, nor normalised ones, nor a head_dim of its own")
        return "gpt2"
    if plain and headless and config.positions == "rotary" and config.norm == "rms" and config.gated and not config.bias:
        return "qwen3" if config.qk_norm else "llama"
    raise ValueError("no Hugging Face architecture has this mix of positions, norm, MLP and biases")


def _gpt2_to_config(config: TransformerConfig) -> dict[str, Any]:
    activated = {"gelu": "gelu_new", "gelu_erf": "gelu"}.get(config.activation, config.activation)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": config.context, "n_embd": config.dim, "n_layer": config.layers, "n_head": config.heads,
        "n_inner": config.hidden, "activation_function": activated, "layer_norm_epsilon": config.norm_epsilon,
        "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout,
    }  # fmt: skip


def _gpt2_from_config(config: Mapping[str, Any]) -> TransformerConfig:
    rescaled = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    if any(config.get(key) for key in rescaled) or not config.get("scale_attn_weights", True):
        raise ValueError("GPT-2 variants with rescaled attention are not supported")
    dim, heads, head_dim = head_width(config, "n_embd", "n_head")
    return TransformerConfig(
        vocabulary=whole(config, "vocab_size"), context=whole(config, "n_positions"), layers=whole(config, "n_layer"),
        dim=dim, heads=heads, kv_heads=heads, head_dim=head_dim, hidden=whole(config, "n_inner", 4 * dim),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5), dropout=config.get("resid_pdrop", 0.0),
        activation=activation(config.get("activation_function", "gelu_new")),
        tied=config.get("tie_word_embeddings", True),
    )  # fmt: skip


def _gpt2_rules(config: TransformerConfig, prefix: str) -> Iterator[Rule]:
    yield Rule(("embedding",), (f"{prefix}wte",))
    yield Rule(("position",), (f"{prefix}wpe",))
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"{prefix}h.{layer}."
        for mine, other in (
            ("attention_norm", "ln_1"), ("attention.out", "attn.c_proj"), ("mlp_norm", "ln_2"),
            ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj"),
        ):  # fmt: skip
            yield Rule((ours + mine,), (theirs + other,), turned, turned)
        yield qkv_in_one(f"{ours}attention.qkv", f"{theirs}attn.c_attn", config, transposed=True)
    yield Rule(("norm",), (f"{prefix}ln_f",))
    yield Rule(("head",), ("lm_head",))


def _llama_to_config(config: TransformerConfig) -> dict[str, Any]:
    activated = {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu"}.get(config.activation, config.activation)
    return {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "max_position_embeddings": config.context, "hidden_size": config.dim, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "intermediate_size": config.hidden, "hidden_act": activated, "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta, "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "attention_bias": False, "mlp_bias": False, "attention_dropout": config.dropout,
    }  # fmt: skip


def _llama_from_config(config: Mapping[str, Any]) -> TransformerConfig:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"rotary positions of type '{rope_type}' are not supported, only 'default'")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("Llama variants with biases are not supported")
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or []):
        raise ValueError("sliding-window attention is not supported")
    dim, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    qk_norm = config["model_type"] == "qwen3"
    return TransformerConfig(
        vocabulary=whole(config, "vocab_size"), context=whole(config, "max_position_embeddings"),
        layers=whole(config, "num_hidden_layers"), dim=dim, heads=heads,
        kv_heads=whole(config, "num_key_value_heads", heads),
        head_dim=whole(config, "head_dim", 128 if qk_norm else dim // heads),
        hidden=whole(config, "intermediate_size"), positions="rotary", norm="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        activation=activation(config.get("hidden_act", "silu")), gated=True, qk_norm=qk_norm, bias=False,
        tied=config.get("tie_word_embeddings", False), dropout=config.get("attention_dropout", 0.0),
        rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
    )  # fmt: skip


def _llama_rules(config: TransformerConfig, prefix: str) -> Iterator[Rule]:
    yield Rule(("embedding",), (f"{prefix}embed_tokens",))
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"{prefix}layers.{layer}."
        query, key, value = (f"{theirs}self_attn.{name}_proj" for name in "qkv")
        yield qkv_in_three(f"{ours}attention.qkv", (query, key, value), config)
        for mine, other in (
            ("attention_norm", "input_layernorm"), ("attention.out", "self_attn.o_proj"),
            ("attention.query_norm", "self_attn.q_norm"), ("attention.key_norm", "self_attn.k_norm"),
            ("mlp_norm", "post_attention_layernorm"),
            ("mlp.gate", "mlp.gate_proj"), ("mlp.up", "mlp.up_proj"), ("mlp.down", "mlp.down_proj"),
        ):  # fmt: skip
            yield Rule((ours + mine,), (theirs + other,))
    yield Rule(("norm",), (f"{prefix}norm",))
    yield Rule(("head",), ("lm_head",))


def _copies(embedding: str) -> Any:
    return lambda config, prefix: {"lm_head.weight": f"{prefix}{embedding}.weight"} if config.tied else {}


_LLAMA = Family(
    "model.", _llama_to_config, _llama_from_config, _llama_rules, _copies("embed_tokens"),
    computed=(".rotary_emb.inv_freq",),
)  # fmt: skip

DECODERS: dict[str, Family] = {
    "gpt2": Family(
        "transformer.", _gpt2_to_config, _gpt2_from_config, _gpt2_rules, _copies("wte"),
        computed=(".attn.bias", ".attn.masked_bias"),
    ),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
}  # fmt: skip
"""By `model_type`."""
