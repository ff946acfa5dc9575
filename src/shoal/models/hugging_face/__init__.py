"""Weights and configuration in and out of the Hugging Face layout: GPT-2, Llama, Qwen3, BERT and ModernBERT.

RoBERTa and DistilBERT are read too, as the BERT that computes the same.

Pure mapping between dictionaries; nothing is read or written here. Adding a family is one entry in `decoders.py` or
`encoders.py`: its `config.json` both ways, and rules between its names and ours.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shoal.models.config import TransformerConfig
from shoal.models.dropout import changed, dropout_from_hugging_face, dropout_to_hugging_face
from shoal.models.hugging_face import decoders, encoders, heads
from shoal.models.hugging_face.decoders import DECODERS
from shoal.models.hugging_face.encoders import ENCODERS
from shoal.models.hugging_face.family import Family
from shoal.models.hugging_face.relatives import RELATIVES, as_bert, config_as_bert
from shoal.models.hugging_face.rules import fuse_qkv, split_qkv, to_ours, to_theirs
from shoal.models.transformer import Transformer

FAMILIES: dict[str, Family] = DECODERS | ENCODERS

_NOTHING = torch.empty(0)
"""Stands for weights where only their names matter."""

__all__ = [
    "FAMILIES", "build", "config_from_hugging_face", "config_to_hugging_face", "family", "fuse_qkv", "shape_with_heads",
    "split_qkv", "weights_from_hugging_face", "weights_to_hugging_face",
]  # fmt: skip


def family(config: TransformerConfig) -> str:
    """The `model_type` that computes exactly this; `ValueError` when there is none."""
    return (decoders if config.causal else encoders).kind_of(config)


def config_to_hugging_face(config: TransformerConfig, end_of_text: int | None = None) -> dict[str, Any]:
    """The content of `config.json`."""
    kind = family(config)
    common: dict[str, Any] = {
        "model_type": kind, "vocab_size": config.vocabulary, "tie_word_embeddings": config.tied,
        "bos_token_id": end_of_text, "eos_token_id": end_of_text, "dtype": "float32",
    }  # fmt: skip
    return common | FAMILIES[kind].to_config(config) | dropout_to_hugging_face(kind, config) | heads.to_config(kind, config)


def config_from_hugging_face(config: Mapping[str, Any]) -> TransformerConfig:
    """Read `config.json`; `ValueError` for a model that Shoal does not compute exactly."""
    try:
        if config.get("model_type") in RELATIVES:
            config = config_as_bert(config)
        shape = _family_named(config).from_config(config)
        return replace(shape, **dropout_from_hugging_face(config["model_type"], config))
    except KeyError as error:
        raise ValueError(f"config.json has no {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"config.json is damaged: {error}") from None


def shape_with_heads(config: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    """As `config_from_hugging_face`, with the heads that weights of these names have, whatever it says of them."""
    if config.get("model_type") in RELATIVES:
        config, weights = _as_bert(config, dict.fromkeys(names, _NOTHING))
        names = weights.keys()
    shape = _family_named(config).heads(config_from_hugging_face(config), names)
    return heads.from_config(config["model_type"], shape, config, names)


def weights_to_hugging_face(model: Transformer) -> dict[str, Tensor]:
    """The model's weights under the names, and in the orientation, of its Hugging Face architecture."""
    kind, config = family(model.config), model.config
    chosen = FAMILIES[kind]
    prefix = chosen.prefix if config.causal or config.transform or config.head else ""  # a body alone has none
    ours = {name: value.detach() for name, value in model.state_dict().items()}
    return to_theirs([*chosen.rules(config, prefix), *heads.rules(kind, config)], ours)


def weights_from_hugging_face(theirs: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Shoal's state dict from a Hugging Face one; `ValueError` names what is missing, misshapen or left over."""
    kind = family(config)
    chosen = FAMILIES[kind]
    found = {name: value for name, value in _with_new_names(theirs, chosen).items() if not name.endswith(chosen.computed)}
    prefix = chosen.prefix if any(name.startswith(chosen.prefix) for name in found) else ""
    for copy, original in chosen.copies(config, prefix).items():
        second = found.pop(copy, None)
        if second is not None and not torch.equal(found.setdefault(original, second), second):
            raise ValueError(f"'{copy}' and '{original}' differ; config.json (tie_word_embeddings) says that they are one")
    rules = [*chosen.rules(config, prefix), *heads.rules(kind, config)]
    return to_ours(rules, found, Transformer(config).state_dict())


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], **dropouts: float | None) -> Transformer:
    """A model from the content of `config.json` and its weights, perhaps with other rates of dropout and layer drop.

    An encoder has the heads that its weights have. `ValueError` for what is not supported or does not fit.
    """
    if config.get("model_type") in RELATIVES:
        config, weights = _as_bert(config, weights)
    shape = replace(shape_with_heads(config, weights.keys()), **changed(dropouts))
    ours = weights_from_hugging_face(weights, shape)
    model = Transformer(shape).materialise()
    model.load_state_dict(ours)
    return model


def _as_bert(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        return as_bert(config, weights)
    except KeyError as error:
        raise ValueError(f"config.json has no {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"config.json is damaged: {error}") from None


def _family_named(config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"model type '{kind}' is not supported; supported: {', '.join((*FAMILIES, *RELATIVES))}")
    return FAMILIES[kind]


def _with_new_names(theirs: Mapping[str, Tensor], chosen: Family) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in theirs.items():
        for old, new in (chosen.renamed or {}).items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        renamed[name] = value
    return renamed
