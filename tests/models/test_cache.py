"""With a cache, tokens in any pieces give what they give in one."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.models.cache import Cache, make_cache
from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer
from tests.models.shapes import FAMILIES, LLAMA, random_model, random_tokens

MODELS = {
    name: random_model(config)
    for name, config in (
        FAMILIES | {"one key head": replace(LLAMA, kv_heads=1), "ungrouped": replace(LLAMA, kv_heads=4)}
    ).items()
}


def cache_of(config: TransformerConfig, batch: int, model: Transformer) -> Cache:
    return make_cache(config.layers, batch, config.kv_heads, config.context, config.head_dim, model.head_weight)


@settings(deadline=None, max_examples=50)
@given(
    name=st.sampled_from(sorted(MODELS)),
    cuts=st.sets(st.integers(1, LLAMA.context - 1), max_size=LLAMA.context - 1),
    length=st.integers(1, LLAMA.context),
)
def test_tokens_in_pieces_give_the_hidden_states_of_all_at_once(name: str, cuts: set[int], length: int) -> None:
    model = MODELS[name]
    tokens = random_tokens(model.config, length=length)
    cache = cache_of(model.config, 2, model)
    edges = [0, *sorted(cut for cut in cuts if cut < length), length]
    with torch.no_grad():
        whole = model(tokens)
        pieces = [model(tokens[:, start:end], cache) for start, end in pairwise(edges)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)
    assert cache.lengths.tolist() == [length] * 2


@pytest.mark.parametrize("name", MODELS)
def test_more_tokens_than_the_context_are_an_error_with_and_without_a_cache(name: str) -> None:
    model = MODELS[name]
    tokens = random_tokens(model.config, length=model.config.context + 1)
    with pytest.raises(ValueError, match="25 tokens are more than the model's context of 24"):
        model(tokens)
    cache = cache_of(model.config, 2, model)
    model(tokens[:, :-1], cache)
    with pytest.raises(ValueError, match="25 tokens are more than the model's context of 24"):
        model(tokens[:, -1:], cache)
