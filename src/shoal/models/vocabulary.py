"""A model whose tokenizer has got further tokens."""

from dataclasses import replace

import torch

from shoal.models.transformer import Transformer


@torch.no_grad()
def with_tokens(model: Transformer, known: int, tokens: int, random: torch.Generator) -> Transformer:
    """A copy that has rows for `tokens`, of which it knows the first `known`.

    New rows of the embedding, and of the output projection, are drawn from a normal distribution with the mean and the
    deviation of the known ones, dimension by dimension: so a new token is at first as likely as others are on average.
    """
    config = replace(model.config, vocabulary=max(tokens, model.config.vocabulary))
    grown = Transformer(config).materialise().train(model.training)
    before = model.state_dict()
    for name, parameter in grown.named_parameters():
        old = before[name].to(parameter.device)
        if name not in ("embedding.weight", "head.weight", "head_bias"):
            parameter.copy_(old)
            continue
        parameter[: len(old)] = old
        drawn = torch.randn(tokens - known, *old.shape[1:], generator=random)
        parameter[known:tokens] = old[:known].mean(0) + old[:known].std(0) * drawn
    return grown.to(model.head_weight.device)
