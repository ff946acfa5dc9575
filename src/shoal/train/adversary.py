"""Adversarial training: each text a second time, its embeddings pushed to where its loss rises (Miyato et al. 2017,
arXiv:1605.07725).

A push is along the gradient of the text's own loss by its embeddings, and ε long over all of the text; where rows are cut
from a corpus, over all of a row. Which others are in its micro-batch or on its rank makes no difference. Half of a step's
gradient is of the texts as they are, half of the pushed ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.models.transformer import Transformer
from shoal.tasks.task import Batch, Pieces


def passes_of(recipe: Recipe) -> int:
    """Forward and backward passes over a micro-batch."""
    return 2 if recipe.regular.adversarial else 1


class Adversary:
    """Pushes what `model` embeds by `length`; a micro-batch passes `watching` first, and then `pushing`."""

    def __init__(self, model: Transformer, length: float) -> None:
        self.model, self.length = model, length
        self._seen: list[Tensor] = []

    @classmethod
    def of(cls, recipe: Recipe, model: Transformer) -> "Adversary | None":
        """The recipe's, or none; `RecipeError` where no second pass may be."""
        length = recipe.regular.adversarial
        if not length:
            return None
        if recipe.parallel.exact:
            raise RecipeError(
                "'parallel.exact' has one pass a micro-batch, and 'regular.adversarial' needs two: set it to 0"
            )
        return cls(model, length)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forward and backward inside tell where the loss rises."""
        self._seen = []
        self.model.on_embedded = self._watch
        try:
            yield
        finally:
            self.model.on_embedded = None

    @contextmanager
    def pushing(self, batch: Batch) -> Iterator[None]:
        """Forward inside is of embeddings that are pushed there; `batch` is the one that was watched."""
        assert self._seen, "nothing was embedded while watching"
        pushes = iter([self._push(seen, batch) for seen in self._seen])
        self._seen = []
        self.model.on_embedded = lambda x_BTD: x_BTD + next(pushes) if torch.is_grad_enabled() else x_BTD
        try:
            yield
        finally:
            self.model.on_embedded = None

    def _watch(self, x_BTD: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # a model to compare with, say
            return x_BTD
        if not x_BTD.requires_grad:  # the embedding is frozen
            x_BTD = x_BTD.detach().requires_grad_()
        x_BTD.retain_grad()
        self._seen.append(x_BTD)
        return x_BTD

    def _push(self, seen_BTD: Tensor, batch: Batch) -> Tensor:
        if seen_BTD.grad is None:
            return torch.zeros_like(seen_BTD)
        whole = seen_BTD.shape[:2] == batch.tokens.shape
        return push_along(seen_BTD.grad, self.length, batch.pieces if whole else None)


def push_along(gradient_BTD: Tensor, length: float, pieces: Pieces | None = None) -> Tensor:
    """The gradient of each text at this length, 0 where it is 0; texts are the rows, or their `pieces`."""
    B, T, _ = gradient_BTD.shape
    of_token_N = torch.arange(B, device=gradient_BTD.device).repeat_interleave(T)
    if pieces is not None:  # padding that follows one has no gradient
        begins_N = torch.zeros_like(of_token_N)
        begins_N[pieces.starts] = 1
        of_token_N = (begins_N.cumsum(0) - 1).clamp(min=0)
    squares_N = gradient_BTD.float().square().sum(-1).flatten()
    # in one order, on a GPU too, as ranks that divide a text must push alike
    norms = torch.segment_reduce(squares_N, "sum", lengths=torch.bincount(of_token_N)).sqrt()
    shares_N = torch.where(norms > 0, length / norms, 0.0)[of_token_N]
    return gradient_BTD * shares_N.view(B, T, 1)
