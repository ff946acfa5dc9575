"""The seam between what is learned and how: sequences in, batch, summed loss and number of targets out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data.plan import HeldOut
from shoal.data.sequences import Framing, Sequences
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer

Found = tuple[Mapping[str, float], HeldOut]
"""What a task's sums are of one corpus, and the text that they are of."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of labelled rows: where they begin in the flattened rows, tokens [pieces], and of which sample each is.

    `values`: by name, a number or an array a piece.
    """

    starts: Tensor
    lengths: Tensor
    samples: list[int]
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, int64 [batch, tokens]; targets that don't count are `models.loss.IGNORED`.

    `read`: how many of the tokens are text rather than padding. `reach` and `segments` are those of `Transformer.forward`.
    `at`: the places of the targets that a task is about, in the flattened batch, where these are only some tokens; `aside`:
    the places of those that it weighs otherwise. `relations` [batch]: for a row of two texts, how they are related.
    `pieces`: of labelled rows.
    """

    tokens: Tensor
    targets: Tensor
    read: int
    reach: Reach | None = None
    segments: Tensor | None = None
    at: Tensor | None = None
    aside: Tensor | None = None
    relations: Tensor | None = None
    pieces: Pieces | None = None


class Task(Protocol):
    """What the training loop asks for: sums, never means, as ranks may hold different numbers of targets."""

    @property
    def projected(self) -> float:
        """Share of the tokens that are projected onto the vocabulary, about."""
        ...

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Inputs and targets."""
        ...

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """(summed loss in fp32, number of targets): the caller divides by the count of the whole global batch."""
        ...

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """What evaluation adds up over batches and ranks; always the same names, `loss` and `count` among them."""
        ...


class TextTask(Task, Protocol):
    """An objective that text alone teaches."""

    @property
    def framing(self) -> Framing:
        """How documents are laid into the rows that it gets."""
        ...

    @property
    def least(self) -> int:
        """Tokens of a document below which nothing is learnt of it; a row holds twice as many."""
        ...

    def metrics(self, corpora: Sequence[Found]) -> dict[str, float]:
        """`eval_loss`, `eval_targets` and what else the sums over each corpus's held-out text tell of all of it."""
        ...


def added(corpora: Sequence[Found]) -> dict[str, float]:
    """The sums of all corpora."""
    return {name: sum(sums[name] for sums, _ in corpora) for name in corpora[0][0]}


def scalar(value: float, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The number there, as a kernel writes it: one that is copied there would have to be waited for."""
    return torch.full((), value, dtype=dtype, device=device)


def on_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The numbers as a tensor there."""
    tensor = torch.from_numpy(array)
    # from pinned memory a GPU fetches it by itself, while what comes before is still computed
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
