"""A second pass over each text, pushed to where its loss rises. Over ranks and in all divisions: `test_regular`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from shoal.core.errors import RecipeError
from shoal.models.foreign import Foreign, foreign_config
from shoal.tasks.task import Batch, Pieces
from shoal.train.adversary import Adversary, push_along
from tests.ranks import alone
from tests.train.runs import build_parts, tiny_recipe


def pieces(starts: list[int], lengths: list[int]) -> Pieces:
    return Pieces(torch.tensor(starts), torch.tensor(lengths), [*range(len(starts))], {})


def test_a_push_is_as_long_as_asked_for_each_text_and_along_its_gradient() -> None:
    gradient = torch.randn(2, 6, 5)
    gradient[1, 2:] = 0  # padding, and a text from which nothing is learnt
    for texts, spans in ((None, [(0, 6), (6, 12)]), (pieces([0, 4, 6, 9], [4, 2, 2, 3]), [(0, 4), (4, 6), (6, 9), (9, 12)])):
        pushes, flat = push_along(gradient, 0.3, texts).flatten(0, 1), gradient.flatten(0, 1)
        for low, high in spans:
            its, push = flat[low:high].double(), pushes[low:high].double()
            expected = 0.3 * its / its.norm() if its.norm() > 0 else its
            torch.testing.assert_close(push, expected, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_half_of_texts_as_they_are_and_half_of_pushed_ones(corpus: Path, tmp_path: Path) -> None:
    """Against the definition, with autograd's own gradients."""
    recipe = tiny_recipe(
        corpus, regular={"adversarial": 0.5}, train={"steps": 1, "clip": 0.0}, optimizer={"weight_decay": 0.0}
    )
    parts = build_parts(recipe, tmp_path, alone())
    adversary, model = parts.adversary, parts.model
    assert adversary is not None
    ((_, sequences),) = parts.batches.next_step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    batch = parts.task.batch(sequences, torch.device("cpu"))
    weights = [*model.parameters()]

    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    model.on_embedded = keep
    loss = parts.task.loss(model, batch)[0]
    slope, *plain = torch.autograd.grad(loss, [seen[0], *weights])
    norms = slope.flatten(1).norm(dim=1).view(-1, 1, 1)
    model.on_embedded = lambda x: x + 0.5 * slope / norms
    pushed_loss = parts.task.loss(model, batch)[0]
    pushed = torch.autograd.grad(pushed_loss, weights)
    model.on_embedded = None
    assert pushed_loss > loss

    with adversary.watching():
        (0.5 * parts.task.loss(model, batch)[0]).backward()
    with adversary.pushing(batch):
        (0.5 * parts.task.loss(model, batch)[0]).backward()
    assert model.on_embedded is None
    for weight, one, other in zip(weights, plain, pushed, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, (one + other) / 2, rtol=1e-4, atol=1e-6)


def test_a_frozen_embedding_is_pushed_and_what_has_no_gradient_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    parts = build_parts(tiny_recipe(corpus, regular={"adversarial": 0.5}), tmp_path, alone())
    adversary, model = parts.adversary, parts.model
    assert adversary is not None
    model.embedding.weight.requires_grad_(False)
    ((_, sequences),) = parts.batches.next_step()
    batch = parts.task.batch(sequences, torch.device("cpu"))
    with adversary.watching():
        with torch.no_grad():
            parts.task.loss(model, batch)
        loss = parts.task.loss(model, batch)[0]
        loss.backward()
    with adversary.pushing(batch):
        with torch.no_grad():
            torch.testing.assert_close(parts.task.loss(model, batch)[0], loss.detach())
        assert parts.task.loss(model, batch)[0] > loss


def test_models_of_transformers_are_pushed_too() -> None:
    torch.manual_seed(1)
    theirs = BertModel(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )
    config = foreign_config(theirs.config, causal=False)
    model = Foreign(config, theirs.eval()).like(config)  # as fine-tuning takes one
    tokens = torch.from_numpy(np.arange(12).reshape(2, 6))
    adversary = Adversary(model, 0.5)
    batch = Batch(tokens, tokens, 12)
    with adversary.watching():
        loss = model(tokens).square().mul(torch.arange(16)).sum()
        loss.backward()
    with adversary.pushing(batch):
        assert model(tokens).square().mul(torch.arange(16)).sum() > loss
    torch.testing.assert_close(model(tokens).square().mul(torch.arange(16)).sum(), loss)


def test_what_has_no_second_pass_says_so(corpus: Path, tmp_path: Path) -> None:
    exact = {"exact": True, "virtual_shards": 1, "threads": 1}
    with pytest.raises(RecipeError, match=r"parallel\.exact"):
        build_parts(tiny_recipe(corpus, regular={"adversarial": 0.5}, parallel=exact), tmp_path, alone())
