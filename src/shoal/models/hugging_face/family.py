"""What makes a family of the Hugging Face hub, and reading `config.json` as one must read what others wrote."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.models.config import TransformerConfig
from shoal.models.hugging_face.rules import Rule

ACTIVATIONS = {
    "gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu", "relu2": "relu2",
}  # fmt: skip
"""Their names to ours."""


def _no_copies(config: TransformerConfig, prefix: str) -> dict[str, str]:
    return {}


def _heads_of_config(config: TransformerConfig, names: Collection[str]) -> TransformerConfig:
    return config


@dataclass(frozen=True)
class Family:
    """How a model type keeps its shape and its weights.

    `prefix` stands before the names of all but the heads, and is missing where a file holds the body alone; `rules` and
    `copies` get it as it is there. `copies`: tensors that a file may hold a second time, and of which. `renamed`: ends of
    old names. `computed`: ends of the names of what old files hold though it isn't learned. `heads`: the shape with the
    heads that a file has, by its names, whatever its `config.json` says.
    """

    prefix: str
    to_config: Callable[[TransformerConfig], dict[str, Any]]
    from_config: Callable[[Mapping[str, Any]], TransformerConfig]
    rules: Callable[[TransformerConfig, str], Iterable[Rule]]
    copies: Callable[[TransformerConfig, str], Mapping[str, str]] = _no_copies
    renamed: Mapping[str, str] | None = None
    computed: tuple[str, ...] = ()
    heads: Callable[[TransformerConfig, Collection[str]], TransformerConfig] = _heads_of_config


def whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number above 0; `KeyError` where there is none, and no default."""
    value = config[key] if default is None else config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: '{key}' is {value!r}, not a whole number above 0")
    return value


def activation(name: Any) -> Any:
    """Our name of a nonlinearity."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"activation '{name}' is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def head_width(config: Mapping[str, Any], dim_key: str, heads_key: str) -> tuple[int, int, int]:
    """(width, heads, a head's width), where heads divide the width."""
    dim, heads = whole(config, dim_key), whole(config, heads_key)
    if dim % heads:
        raise ValueError(f"config.json: '{dim_key}' ({dim}) must be a multiple of '{heads_key}' ({heads})")
    return dim, heads, dim // heads
