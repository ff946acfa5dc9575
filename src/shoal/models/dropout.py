"""Where the layouts of Hugging Face keep what is dropped in training.

GPT-2's and ModernBERT's have a key for each kind, BERT's one for two, Llama's one for attention alone. What a family has no
key for is written under a name that others have for it, which `transformers` keeps and doesn't use, so that a folder written
here says all when it is read here.
"""

from collections.abc import Mapping
from typing import Any

from shoal.models.config import TransformerConfig

KEYS = {
    "gpt2": {"residual": "resid_pdrop", "embedding": "embd_pdrop", "attention": "attn_pdrop"},
    "llama": {"residual": "resid_pdrop", "embedding": "embd_pdrop", "attention": "attention_dropout"},
    "qwen3": {"residual": "resid_pdrop", "embedding": "embd_pdrop", "attention": "attention_dropout"},
    "bert": {"residual": "hidden_dropout_prob", "embedding": "embd_pdrop", "attention": "attention_probs_dropout_prob"},
    "modernbert": {"residual": "mlp_dropout", "embedding": "embedding_dropout", "attention": "attention_dropout"},
}
LAYER_DROP = "layerdrop"
NAMES = ("dropout", "attention_dropout", "residual_dropout", "embedding_dropout", "layer_drop")
"""The fields of `TransformerConfig`."""


def dropout_to_hugging_face(family: str, config: TransformerConfig) -> dict[str, float]:
    """The keys of `config.json`."""
    kinds: Any = KEYS[family]
    found = {key: config.dropped(kind) for kind, key in kinds.items()}
    return found | ({LAYER_DROP: config.layer_drop} if config.layer_drop else {})


def dropout_from_hugging_face(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `TransformerConfig`; kinds of which nothing is said are not dropped."""
    if family == "bert":  # one rate for embeddings and residual branches, 0.1 where nothing is said
        hidden = config.get("hidden_dropout_prob", 0.1)
        config = {"hidden_dropout_prob": hidden, "embd_pdrop": hidden, "attention_probs_dropout_prob": 0.1, **config}
    rates = {kind: float(config.get(key) or 0.0) for kind, key in KEYS[family].items()}
    differing = {f"{kind}_dropout": rate for kind, rate in rates.items() if rate != rates["residual"]}
    return {"dropout": rates["residual"], "layer_drop": float(config.get(LAYER_DROP) or 0.0), **differing}


def changed(rates: Mapping[str, float | None]) -> dict[str, Any]:
    """Arguments for `replace`: new rates, None where they stay; a common one holds for all kinds that are not named."""
    given = {name: rate for name, rate in rates.items() if rate is not None}
    common = dict.fromkeys(NAMES[1:4]) if "dropout" in given else {}
    return {**common, **given}
