"""Keys and values of the tokens seen so far, so that generating a token costs one token's work."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """One layer's keys and values [batch, kv_heads, capacity, head_dim], allocated once; `length` are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [batch, kv_heads, tokens, head_dim]; return all that is filled."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def mask(self, tokens: int) -> Tensor | None:
        """Who the last `tokens` may attend to [tokens, length]: None when plain causal attention says it already."""
        if tokens in (1, self.length):
            return None
        return torch.ones(tokens, self.length, dtype=torch.bool, device=self.keys.device).tril(self.length - tokens)


def make_cache(layers: int, batch: int, kv_heads: int, capacity: int, head_dim: int, like: Tensor) -> list[LayerCache]:
    """An empty cache for every layer, with the type and device of `like`."""
    shape = (batch, kv_heads, capacity, head_dim)
    return [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in range(layers)]
