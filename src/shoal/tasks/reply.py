"""A model's reply to a prompt: at every step its likeliest token."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from shoal.models.cache import make_cache
from shoal.models.transformer import Transformer


@torch.no_grad()
def reply_to(model: Transformer, prompt_T: Tensor, tokens: int, ends: Collection[int], vocabulary: int) -> Sequence[int]:
    """Up to `tokens` tokens of the `vocabulary` that follow the prompt, without the one of `ends` that ends them."""
    config = model.config
    # of every prompt but a whole context, at least one token may follow
    tokens = min(tokens, config.context - len(prompt_T) + 1)
    cache = make_cache(
        config.layers, 1, config.kv_heads, min(config.context, len(prompt_T) + tokens), config.head_dim, model.head_weight
    )
    said: list[int] = []
    pending_T = prompt_T
    while len(said) < tokens:
        hidden_1TD = model(pending_T[None], cache)
        token = int(model.project(hidden_1TD[0, -1])[:vocabulary].argmax())
        if token in ends:
            break
        said.append(token)
        pending_T = pending_T.new_tensor([token])
    return said
