"""Predict the next token (Radford et al. 2018)."""

import torch
from torch import Tensor

from shoal.data.batches import Windows
from shoal.models.loss import IGNORED, linear_cross_entropy
from shoal.models.transformer import Transformer
from shoal.tasks.task import Batch


class Causal:
    """Every token but the first of a window is a target, predicted from those before it."""

    def batch(self, windows: Windows, device: torch.device) -> Batch:
        """Inputs and next-token targets from windows; -1 pads."""
        tokens = torch.from_numpy(windows).to(device, non_blocking=True)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        return Batch(inputs.clamp(min=0), targets.where((targets >= 0) & (inputs >= 0), IGNORED))

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy and the number of targets."""
        hidden_BTD = model(batch.tokens)
        targets_N = batch.targets.flatten()
        loss_sum = linear_cross_entropy(hidden_BTD.flatten(0, 1), model.head_weight, targets_N, model.loss_kernel)
        return loss_sum, (batch.targets != IGNORED).sum()
