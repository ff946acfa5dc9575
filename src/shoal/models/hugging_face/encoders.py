"""BERT (Devlin et al. 2019, arXiv:1810.04805) and ModernBERT (Warner et al. 2024, arXiv:2412.13663).

Real folders of BERT say one architecture in `config.json` and hold the heads of another: Google's say `BertForMaskedLM`, and
have the pooler and the next-sentence head, too. So a model has the heads that its weights have.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from shoal.models.config import TransformerConfig
from shoal.models.hugging_face.family import Family, activation, head_width, whole
from shoal.models.hugging_face.rules import Rule, joined, qkv_in_one, qkv_in_three


def kind_of(config: TransformerConfig) -> str:
    """The encoder family that computes exactly this; `ValueError` when there is none."""
    if config.kv_heads != config.heads or config.qk_norm or config.head_dim * config.heads != config.dim:
        raise ValueError("an encoder's layout has neither grouped heads, nor normalised ones, nor a head_dim of its own")
    if config.norm != "layer" or not config.embedding_norm or config.transform < (config.head_bias or not config.tied):
        raise ValueError("an encoder's layout has LayerNorm, one after the embedding, and a transform before its head")
    bert = config.positions == "learned" and config.bias and not config.gated and not config.norm_first
    if bert and config.first_norm and not config.window and config.segments:
        if config.transform != config.head_bias or config.relation > config.pooler:
            raise ValueError("BERT's layout has a bias in its head, and a relation over its pooler")
        return "bert"
    modern = config.positions == "rotary" and config.gated and config.norm_first and not config.first_norm
    if modern and not (config.segments or config.pooler or config.relation):
        return "modernbert"
    raise ValueError("neither BERT's nor ModernBERT's layout has this mix of positions, norms, MLP, segments and biases")


def _activated(config: TransformerConfig) -> str:
    return {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu"}.get(config.activation, config.activation)


def _bert_to_config(config: TransformerConfig) -> dict[str, Any]:
    masked = "BertForPreTraining" if config.relation else "BertForMaskedLM"
    return {
        "architectures": [masked if config.transform else "BertModel"],
        "max_position_embeddings": config.context, "hidden_size": config.dim, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "intermediate_size": config.hidden, "hidden_act": _activated(config),
        "layer_norm_eps": config.norm_epsilon, "type_vocab_size": config.segments,
        "pad_token_id": None,
    }  # fmt: skip


def _bert_from_config(config: Mapping[str, Any]) -> TransformerConfig:
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"BERT variants with '{config['position_embedding_type']}' positions are not supported")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ValueError("BERT variants that are decoders, or attend to another text, are not supported")
    dim, heads, head_dim = head_width(config, "hidden_size", "num_attention_heads")
    architecture = (config.get("architectures") or ["BertForMaskedLM"])[0]
    masked = architecture in ("BertForMaskedLM", "BertForPreTraining")
    return TransformerConfig(
        vocabulary=whole(config, "vocab_size"), context=whole(config, "max_position_embeddings", 512),
        layers=whole(config, "num_hidden_layers"), dim=dim, heads=heads, kv_heads=heads, head_dim=head_dim,
        hidden=whole(config, "intermediate_size"), norm_epsilon=config.get("layer_norm_eps", 1e-12),
        activation=activation(config.get("hidden_act", "gelu")), segments=whole(config, "type_vocab_size", 2),
        tied=not masked or config.get("tie_word_embeddings", True),
        causal=False, norm_first=False, embedding_norm=True, transform=masked, head_bias=masked,
        pooler=architecture in ("BertModel", "BertForPreTraining"), relation=architecture == "BertForPreTraining",
    )  # fmt: skip


def _bert_rules(config: TransformerConfig, prefix: str) -> Iterator[Rule]:
    for mine, other in (
        ("embedding", "word_embeddings"), ("position", "position_embeddings"), ("segment", "token_type_embeddings"),
        ("embedding_norm", "LayerNorm"),
    ):  # fmt: skip
        yield Rule((mine,), (f"{prefix}embeddings.{other}",))
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"{prefix}encoder.layer.{layer}."
        query, key, value = (f"{theirs}attention.self.{name}" for name in ("query", "key", "value"))
        yield qkv_in_three(f"{ours}attention.qkv", (query, key, value), config)
        for mine, other in (
            ("attention.out", "attention.output.dense"), ("attention_norm", "attention.output.LayerNorm"),
            ("mlp.up", "intermediate.dense"), ("mlp.down", "output.dense"), ("mlp_norm", "output.LayerNorm"),
        ):  # fmt: skip
            yield Rule((ours + mine,), (theirs + other,))
    yield Rule(("pooler",), (f"{prefix}pooler.dense",))
    yield Rule(("relation",), ("cls.seq_relationship",))
    yield Rule(("transform.dense",), ("cls.predictions.transform.dense",))
    yield Rule(("transform.norm",), ("cls.predictions.transform.LayerNorm",))
    yield Rule(("head",), ("cls.predictions.decoder",))
    if config.tied:
        yield Rule(("head_bias",), ("cls.predictions.bias",))
    else:  # there, a bias that nothing uses stays beside the decoder's own
        both = ("cls.predictions.bias", "cls.predictions.decoder.bias")
        yield Rule(("head_bias",), both, lambda bias: (bias, bias.clone()), lambda unused, bias: (bias,))


def _bert_copies(config: TransformerConfig, prefix: str) -> dict[str, str]:
    if not config.tied:
        return {}
    return {
        "cls.predictions.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


def _bert_heads(config: TransformerConfig, names: Collection[str]) -> TransformerConfig:
    masked = "cls.predictions.transform.dense.weight" in names
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    return replace(
        config, transform=masked, head_bias=masked, tied=config.tied or not masked, pooler=pooler,
        relation=pooler and "cls.seq_relationship.weight" in names,
    )  # fmt: skip


def _modernbert_to_config(config: TransformerConfig) -> dict[str, Any]:
    local = bool(config.window)
    kinds = [
        "sliding_attention" if local and layer % config.global_every else "full_attention" for layer in range(config.layers)
    ]
    bases = {"full_attention": config.rope_theta, "sliding_attention": config.local_rope_theta}
    biased = dict.fromkeys(_BIASES, config.bias)
    return biased | {
        "architectures": ["ModernBertForMaskedLM" if config.transform else "ModernBertModel"],
        "max_position_embeddings": config.context, "hidden_size": config.dim, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "intermediate_size": config.hidden,
        "hidden_activation": _activated(config), "classifier_activation": _activated(config),
        "norm_eps": config.norm_epsilon, "decoder_bias": config.head_bias,
        "layer_types": kinds, "global_attn_every_n_layers": config.global_every if local else 1,
        "local_attention": 2 * config.window if local else 128,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "pad_token_id": None, "cls_token_id": None, "sep_token_id": None,
    }  # fmt: skip


_BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")


def _modernbert_from_config(config: Mapping[str, Any]) -> TransformerConfig:
    biased = {bool(config.get(key)) for key in _BIASES}
    if len(biased) > 1:
        raise ValueError(f"ModernBERT variants with some of {', '.join(_BIASES)} are not supported, only with all or none")
    acting = config.get("hidden_activation", "gelu")
    if config.get("classifier_activation", "gelu") != acting:
        raise ValueError("ModernBERT variants whose head has another activation than their layers are not supported")
    dim, heads, head_dim = head_width(config, "hidden_size", "num_attention_heads")
    layers = whole(config, "num_hidden_layers")
    every = _global_every(config, layers)
    masked = (config.get("architectures") or ["ModernBertForMaskedLM"])[0] == "ModernBertForMaskedLM"
    global_base, local_base = _bases(config)
    return TransformerConfig(
        vocabulary=whole(config, "vocab_size"), context=whole(config, "max_position_embeddings", 8192), layers=layers,
        dim=dim, heads=heads, kv_heads=heads, head_dim=head_dim, hidden=whole(config, "intermediate_size"),
        positions="rotary", norm_epsilon=config.get("norm_eps", 1e-5), activation=activation(acting), gated=True,
        bias=biased == {True}, tied=not masked or config.get("tie_word_embeddings", True),
        causal=False, embedding_norm=True, first_norm=False,
        window=whole(config, "local_attention", 128) // 2 if every > 1 else 0, global_every=every,
        rope_theta=global_base, local_rope_theta=local_base, transform=masked,
        head_bias=masked and config.get("decoder_bias", True),
    )  # fmt: skip


def _global_every(config: Mapping[str, Any], layers: int) -> int:
    """Of how many layers the first sees everything: by the list of layers' kinds, where there is one."""
    said = whole(config, "global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    if kinds is None:
        return said if layers > 1 else 1
    for every in (said, *range(1, layers + 1)):
        if list(kinds) == [("sliding" if layer % every else "full") + "_attention" for layer in range(layers)]:
            return every if "sliding_attention" in kinds else 1
    raise ValueError(f"ModernBERT variants whose local and global layers don't alternate are not supported: {kinds}")


def _bases(config: Mapping[str, Any]) -> tuple[float, float]:
    """Of the rotary frequencies, of global and of local layers, under their new names or the old ones."""
    given = config.get("rope_parameters") or {}
    scaled = config.get("rope_scaling") or {}
    found = []
    for kind, old, default in (
        ("full_attention", "global_rope_theta", 160_000.0), ("sliding_attention", "local_rope_theta", 10_000.0),
    ):  # fmt: skip
        rope = given.get(kind) or {}
        for said in (rope, scaled):
            rope_type = said.get("rope_type", said.get("type", "default"))
            if rope_type != "default":
                raise ValueError(f"rotary positions of type '{rope_type}' are not supported, only 'default'")
        found.append(rope.get("rope_theta") or config.get(old) or default)
    return found[0], found[1]


def _modernbert_rules(config: TransformerConfig, prefix: str) -> Iterator[Rule]:
    yield Rule(("embedding",), (f"{prefix}embeddings.tok_embeddings",))
    yield Rule(("embedding_norm",), (f"{prefix}embeddings.norm",))
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"{prefix}layers.{layer}."
        yield qkv_in_one(f"{ours}attention.qkv", f"{theirs}attn.Wqkv", config)
        yield joined((f"{ours}mlp.gate", f"{ours}mlp.up"), f"{theirs}mlp.Wi")
        for mine, other in (
            ("attention_norm", "attn_norm"), ("attention.out", "attn.Wo"), ("mlp_norm", "mlp_norm"), ("mlp.down", "mlp.Wo"),
        ):  # fmt: skip
            yield Rule((ours + mine,), (theirs + other,))
    yield Rule(("norm",), (f"{prefix}final_norm",))
    yield Rule(("transform.dense",), ("head.dense",))
    yield Rule(("transform.norm",), ("head.norm",))
    yield Rule(("head",), ("decoder",))
    yield Rule(("head_bias",), ("decoder.bias",))


def _modernbert_copies(config: TransformerConfig, prefix: str) -> dict[str, str]:
    return {"decoder.weight": f"{prefix}embeddings.tok_embeddings.weight"} if config.tied else {}


def _modernbert_heads(config: TransformerConfig, names: Collection[str]) -> TransformerConfig:
    masked = "head.dense.weight" in names
    return replace(config, transform=masked, head_bias="decoder.bias" in names, tied=config.tied or not masked)


ENCODERS: dict[str, Family] = {
    "bert": Family(
        "bert.", _bert_to_config, _bert_from_config, _bert_rules, _bert_copies,
        renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        computed=("embeddings.position_ids",), heads=_bert_heads,
    ),
    "modernbert": Family(
        "model.", _modernbert_to_config, _modernbert_from_config, _modernbert_rules, _modernbert_copies,
        heads=_modernbert_heads,
    ),
}  # fmt: skip
"""By `model_type`."""
