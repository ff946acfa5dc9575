"""The seam between what is learned and how: windows in, batch, summed loss and number of targets out."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shoal.data.batches import Windows
from shoal.models.transformer import Transformer


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, both int64 [batch, tokens]; targets that don't count are `models.loss.IGNORED`."""

    tokens: Tensor
    targets: Tensor


class Task(Protocol):
    """An objective."""

    def batch(self, windows: Windows, device: torch.device) -> Batch:
        """Inputs and targets from windows [sequences, context + 1]."""
        ...

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """(summed loss in fp32, number of targets): the caller divides by the count of the whole global batch."""
        ...
