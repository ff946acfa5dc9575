"""Losses of single tokens, and new rows of the vocabulary."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from shoal.models import loss
from shoal.models.token_losses import token_losses
from shoal.models.vocabulary import with_tokens
from tests.models.shapes import GPT2, LLAMA, random_model, random_tokens


@pytest.mark.parametrize("chunk_bytes", [4 * 11 * 3, 1 << 20])
def test_losses_and_weighted_gradients_are_those_of_a_float64_formula(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    random = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(size, 5, generator=random, requires_grad=True) for size in (7, 11))
    targets, share = torch.randint(11, (7,), generator=random), torch.randn(7, generator=random)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    losses = token_losses(hidden, weight, targets)
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    (losses * share).sum().backward()
    (expected * share.double()).sum().backward()
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [GPT2, LLAMA, replace(LLAMA, vocabulary=48)])
def test_new_tokens_leave_the_logits_of_the_others_as_they_were(config: object) -> None:
    assert isinstance(config, type(GPT2))
    model, known = random_model(config), 37
    grown = with_tokens(model, known, 41, torch.Generator().manual_seed(2))
    assert grown.config.vocabulary == max(41, config.vocabulary)
    tokens = random_tokens(replace(config, vocabulary=known))
    expected, found = (one.project(one(tokens)) for one in (model, grown))
    torch.testing.assert_close(found[..., :known], expected[..., :known])
    again = with_tokens(model, known, 41, torch.Generator().manual_seed(2))
    for name, value in again.state_dict().items():
        assert torch.equal(value, grown.state_dict()[name])
    assert 0.5 < float(grown.embedding.weight[known:41].detach().std() / model.embedding.weight[:known].detach().std()) < 2
