"""Small encoders with parts that nothing uses, and a task for them that hides every third word."""

from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor

from shoal.data.sequences import Sequences
from shoal.models.loss import IGNORED, linear_cross_entropy
from shoal.models.presets import PRESETS
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.tasks import Batch

SHAPES = {
    "bert with idle heads": replace(PRESETS["bert-mini"], pooler=True, relation=True),
    "local layers, untied": replace(PRESETS["encoder-tiny"], window=3, global_every=2, tied=False),
}
with_shapes = mock.patch.dict(PRESETS, SHAPES)
"""Inside, these are presets."""


@dataclass(frozen=True)
class Hiding:
    """Words at fixed places are read as word 0 and are the targets; a row's text is of two kinds."""

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Inputs, the hidden words, and who sees whom."""
        tokens = torch.from_numpy(sequences.tokens)
        real, place = tokens >= 0, torch.arange(tokens.shape[1])
        hidden = real & (place % 3 == 1)
        read = tokens.where(real & ~hidden, 0)
        return Batch(
            read, tokens.where(hidden, IGNORED), int(real.sum()), Reach.of_mask(real), (place >= 5).int().expand_as(read)
        )

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy of the hidden words, and how many they are."""
        segments = batch.segments if model.config.segments else None
        chosen = batch.targets != IGNORED
        hidden_ND = model.before_head(model(batch.tokens, reach=batch.reach, segments_BT=segments)[chosen])
        targets_N = batch.targets[chosen]
        loss = linear_cross_entropy(hidden_ND, model.head_weight, targets_N, model.loss_kernel, model.head_bias)
        return loss, chosen.sum()
