"""Predict the next token (Radford et al. 2018)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.data.sequences import Framing, Sequences
from shoal.models.loss import IGNORED, linear_cross_entropy
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.tasks.task import Batch, Found, added, on_device


class Causal:
    """Every token's target is the one that follows; it is predicted from the document up to there."""

    framing = Framing("shifted")
    projected = 1.0
    least = 1

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Inputs and next-token targets."""
        tokens, following = on_device(sequences.tokens, device), on_device(sequences.following, device)
        real = (tokens >= 0) & (following >= 0)
        reach = None
        if sequences.documents is not None:
            reach = Reach.of_documents(on_device(sequences.documents, device), causal=True)
        read = int(((sequences.tokens >= 0) & (sequences.following >= 0)).sum())
        return Batch(tokens.clamp(min=0), following.where(real, IGNORED), read, reach)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy and the number of targets."""
        hidden_BTD = model(batch.tokens, reach=batch.reach)
        targets_N = batch.targets.flatten()
        loss_sum = linear_cross_entropy(hidden_BTD.flatten(0, 1), model.head_weight, targets_N, model.loss_kernel)
        return loss_sum, (batch.targets != IGNORED).sum()

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss and count."""
        loss_sum, count = self.loss(model, batch)
        return {"loss": loss_sum, "count": count}

    def metrics(self, corpora: Sequence[Found]) -> dict[str, float]:
        """Nats a token, and bits a byte of all text, as its targets are known."""
        sums = added(corpora)
        bits = sum(part["loss"] / part["count"] / math.log(2) * text.rows.targets for part, text in corpora)
        size = sum(text.bytes for _, text in corpora)
        return {"eval_loss": sums["loss"] / sums["count"], "eval_bpb": bits / size, "eval_targets": int(sums["count"])}
