"""Families that are BERT under other names: RoBERTa (Liu et al. 2019) and its kin, DistilBERT (Sanh et al. 2019).

They are read as the BERT that computes the same, and written as that. RoBERTa's positions begin behind its padding token's
number, so the first rows of its table are never read; DistilBERT has no kinds of text. Its classifier has a ReLU where
BERT's has a tanh: that head alone is left out, for fine-tuning to put a new one in its place.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ROBERTA = ("roberta", "xlm-roberta", "camembert")

RELATIVES = (*ROBERTA, "distilbert")
"""By `model_type`."""

_ROBERTA_NAMES = {
    r"^roberta\.": "bert.",
    r"^lm_head\.dense\.": "cls.predictions.transform.dense.",
    r"^lm_head\.layer_norm\.": "cls.predictions.transform.LayerNorm.",
    r"^lm_head\.decoder\.": "cls.predictions.decoder.",
    r"^lm_head\.bias$": "cls.predictions.bias",
    r"^classifier\.dense\.": "bert.pooler.dense.",
    r"^classifier\.out_proj\.": "classifier.",
}

_DISTILBERT_NAMES = {
    r"^distilbert\.": "bert.",
    r"^(bert\.)?transformer\.layer\.": r"\1encoder.layer.",
    r"\.attention\.q_lin\.": ".attention.self.query.",
    r"\.attention\.k_lin\.": ".attention.self.key.",
    r"\.attention\.v_lin\.": ".attention.self.value.",
    r"\.attention\.out_lin\.": ".attention.output.dense.",
    r"\.sa_layer_norm\.": ".attention.output.LayerNorm.",
    r"\.ffn\.lin1\.": ".intermediate.dense.",
    r"\.ffn\.lin2\.": ".output.dense.",
    r"\.output_layer_norm\.": ".output.LayerNorm.",
    r"^vocab_transform\.": "cls.predictions.transform.dense.",
    r"^vocab_layer_norm\.": "cls.predictions.transform.LayerNorm.",
    r"^vocab_projector\.weight$": "cls.predictions.decoder.weight",
    r"^vocab_projector\.bias$": "cls.predictions.bias",
}

_CLASSES = {"Roberta": "Bert", "XLMRoberta": "Bert", "Camembert": "Bert", "DistilBert": "Bert"}


def as_bert(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, weights) of the BERT that computes the same; `ValueError` for what none does."""
    if config["model_type"] in ROBERTA:
        return _roberta_config(config), _roberta_weights(config, weights)
    return _distilbert_config(config), _distilbert_weights(config, weights)


def config_as_bert(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json alone."""
    return _roberta_config(config) if config["model_type"] in ROBERTA else _distilbert_config(config)


def _roberta_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config) | {
        "model_type": "bert",
        "architectures": _architectures(config, "RobertaForMaskedLM"),
        "max_position_embeddings": config["max_position_embeddings"] - _first_position(config),
        "type_vocab_size": config.get("type_vocab_size", 1),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
    }


def _distilbert_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config) | {
        "model_type": "bert",
        "architectures": _architectures(config, "DistilBertForMaskedLM"),
        "hidden_size": config["dim"], "num_hidden_layers": config["n_layers"], "num_attention_heads": config["n_heads"],
        "intermediate_size": config["hidden_dim"], "hidden_act": config.get("activation", "gelu"),
        "layer_norm_eps": 1e-12, "type_vocab_size": 1,
        "hidden_dropout_prob": config.get("dropout", 0.1),
        "attention_probs_dropout_prob": config.get("attention_dropout", 0.1),
    }  # fmt: skip


def _architectures(config: Mapping[str, Any], usual: str) -> list[str]:
    name = (config.get("architectures") or [usual])[0]
    for theirs in sorted(_CLASSES, key=len, reverse=True):
        if name.startswith(theirs):
            ending = name.removeprefix(theirs)
            headless = theirs == "DistilBert" and ending == "ForSequenceClassification"
            return ["BertModel" if headless else _CLASSES[theirs] + ending]
    return [name]


def _first_position(config: Mapping[str, Any]) -> int:
    """Where RoBERTa's positions begin: behind the number of its padding token."""
    padding = config.get("pad_token_id")
    return (1 if padding is None else int(padding)) + 1


def _roberta_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {_renamed(name, _ROBERTA_NAMES): value for name, value in weights.items()}
    first = _first_position(config)
    table = "embeddings.position_embeddings.weight"
    return {name: value[first:].clone() if name.endswith(table) else value for name, value in renamed.items()}


def _distilbert_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    classifies = any(name.startswith("pre_classifier.") for name in weights)
    kept = {
        name: value
        for name, value in weights.items()
        if not (classifies and name.startswith(("pre_classifier.", "classifier.")))
    }
    renamed = {_renamed(name, _DISTILBERT_NAMES): value for name, value in kept.items()}
    prefix = "bert." if any(name.startswith("bert.") for name in renamed) else ""
    renamed[f"{prefix}embeddings.token_type_embeddings.weight"] = torch.zeros(1, config["dim"])
    return renamed


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name
