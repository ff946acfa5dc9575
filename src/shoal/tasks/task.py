"""The seam between what is learned and how: sequences in, batch, summed loss and number of targets out."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shoal.data.sequences import Framing, Sequences
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, int64 [batch, tokens]; targets that don't count are `models.loss.IGNORED`.

    `read`: how many of the tokens are text rather than padding. `reach` and `segments` are those of `Transformer.forward`.
    """

    tokens: Tensor
    targets: Tensor
    read: int
    reach: Reach | None = None
    segments: Tensor | None = None


class Task(Protocol):
    """An objective."""

    @property
    def framing(self) -> Framing:
        """How documents are laid into the rows that it gets."""
        ...

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Inputs and targets."""
        ...

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """(summed loss in fp32, number of targets): the caller divides by the count of the whole global batch."""
        ...
