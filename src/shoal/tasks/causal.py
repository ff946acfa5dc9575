"""Predict the next token (Radford et al. 2018)."""

import torch
from torch import Tensor

from shoal.data.sequences import Framing, Sequences
from shoal.models.loss import IGNORED, linear_cross_entropy
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.tasks.task import Batch


class Causal:
    """Every token's target is the one that follows; it is predicted from the document up to there."""

    framing = Framing("shifted")

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Inputs and next-token targets."""
        both = (sequences.tokens, sequences.following)
        tokens, following = (torch.from_numpy(ids).to(device, non_blocking=True) for ids in both)
        real = (tokens >= 0) & (following >= 0)
        reach = None
        if sequences.documents is not None:
            reach = Reach.of_documents(torch.from_numpy(sequences.documents).to(device, non_blocking=True), causal=True)
        read = int(((sequences.tokens >= 0) & (sequences.following >= 0)).sum())
        return Batch(tokens.clamp(min=0), following.where(real, IGNORED), read, reach)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy and the number of targets."""
        hidden_BTD = model(batch.tokens, reach=batch.reach)
        targets_N = batch.targets.flatten()
        loss_sum = linear_cross_entropy(hidden_BTD.flatten(0, 1), model.head_weight, targets_N, model.loss_kernel)
        return loss_sum, (batch.targets != IGNORED).sum()
