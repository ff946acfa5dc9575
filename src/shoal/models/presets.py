"""Named shapes. A preset is data; `make_config` applies changes to it.

GPT-2 and GPT-3 shapes: Radford et al. 2019; Brown et al. 2020, table 2.1. Llama-style: RoPE, RMSNorm and SwiGLU
(Touvron et al. 2023), hidden about 8/3 of the width. Qwen3-style adds normalised queries and keys and a fixed head width.

Encoders for masked words: BERT (Devlin et al. 2019), its small ones (Turc et al. 2019, arXiv:1908.08962), ModernBERT (Warner
et al. 2024, arXiv:2412.13663). `encoder-tiny` is a ModernBERT of 11M parameters with 8,192 words: made for hundreds of
tokens, so that its rotary base is the one that ModernBERT had before it was taught longer texts.
"""

from dataclasses import fields, replace
from typing import Any

from shoal.models.config import TransformerConfig


def _gpt(layers: int, dim: int, heads: int, context: int = 1024) -> TransformerConfig:
    return TransformerConfig(
        vocabulary=50_257, context=context, layers=layers, dim=dim, heads=heads, kv_heads=heads,
        head_dim=dim // heads, hidden=4 * dim,
    )  # fmt: skip


def _llama(layers: int, dim: int, heads: int, kv_heads: int, hidden: int, **changes: Any) -> TransformerConfig:
    config = TransformerConfig(
        vocabulary=32_000, context=2048, layers=layers, dim=dim, heads=heads, kv_heads=kv_heads,
        head_dim=dim // heads, hidden=hidden, positions="rotary", norm="rms", activation="silu", gated=True,
        bias=False, tied=False,
    )  # fmt: skip
    return replace(config, **changes)


def _qwen(layers: int, dim: int, heads: int, kv_heads: int, hidden: int, **changes: Any) -> TransformerConfig:
    settings: dict[str, Any] = {
        "vocabulary": 151_936, "context": 4096, "norm_epsilon": 1e-6, "rope_theta": 1e6, "qk_norm": True, "tied": True,
    }  # fmt: skip
    return _llama(layers, dim, heads, kv_heads, hidden, **(settings | changes))


def _bert(layers: int, dim: int) -> TransformerConfig:
    return TransformerConfig(
        vocabulary=30_522, context=512, layers=layers, dim=dim, heads=dim // 64, kv_heads=dim // 64, head_dim=64,
        hidden=4 * dim, norm_epsilon=1e-12, activation="gelu_erf", causal=False, norm_first=False, embedding_norm=True,
        segments=2, transform=True, head_bias=True,
    )  # fmt: skip


def _modern_bert(layers: int, dim: int, hidden: int, **changes: Any) -> TransformerConfig:
    config = TransformerConfig(
        vocabulary=50_368, context=8192, layers=layers, dim=dim, heads=dim // 64, kv_heads=dim // 64, head_dim=64,
        hidden=hidden, positions="rotary", activation="gelu_erf", gated=True, bias=False, causal=False,
        embedding_norm=True, first_norm=False, window=64, global_every=3, rope_theta=160_000.0, transform=True,
        head_bias=True,
    )  # fmt: skip
    return replace(config, **changes)


PRESETS: dict[str, TransformerConfig] = {
    "gpt2-small": _gpt(12, 768, 12),
    "gpt2-medium": _gpt(24, 1024, 16),
    "gpt2-large": _gpt(36, 1280, 20),
    "gpt2-xl": _gpt(48, 1600, 25),
    "gpt3-small": _gpt(12, 768, 12, context=2048),
    "gpt3-medium": _gpt(24, 1024, 16, context=2048),
    "gpt3-xl": _gpt(24, 2048, 16, context=2048),
    "llama-tiny": _llama(6, 384, 6, 6, 1024, context=512),
    "llama-small": _llama(12, 768, 12, 4, 2048),
    "llama-1b": _llama(16, 2048, 32, 8, 8192),
    "qwen3-tiny": _qwen(6, 384, 6, 6, 1024, head_dim=64, context=512),
    "qwen3-0.6b": _qwen(28, 1024, 16, 8, 3072, head_dim=128),
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "encoder-tiny": _modern_bert(6, 384, 576, vocabulary=8192, context=512, rope_theta=10_000.0, activation="gelu"),
    "modernbert-base": _modern_bert(22, 768, 1152),
}
"""Name to shape, for `model.preset`."""


def make_config(preset: str, **changes: Any) -> TransformerConfig:
    """A preset with changes; None keeps the preset's value. Widths that follow from others follow the changes.

    `ValueError` for an unknown preset or numbers that don't fit together.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset '{preset}'; there are: {', '.join(PRESETS)}")
    base = PRESETS[preset]
    given = {name: value for name, value in changes.items() if value is not None}
    unknown = given.keys() - {field.name for field in fields(base)}
    if unknown:
        raise ValueError(f"a Transformer has no {', '.join(sorted(unknown))}")
    dim, heads = given.get("dim", base.dim), given.get("heads", base.heads)
    if "heads" in given and "kv_heads" not in given:
        given["kv_heads"] = max(1, heads * base.kv_heads // base.heads)
    if "head_dim" not in given and {"dim", "heads"} & given.keys():
        if dim % heads:
            raise ValueError(f"dim ({dim}) must be a multiple of heads ({heads}), or set head_dim")
        given["head_dim"] = dim // heads
    if "dim" in given and "hidden" not in given:
        # the preset's ratio, rounded up to what vector units like
        given["hidden"] = -(-dim * base.hidden // base.dim // 64) * 64
    return replace(base, **given)
