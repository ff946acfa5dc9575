"""The vocabulary at some places of a batch only: loss, and how often the likeliest token is the right one.

Hidden states are gathered first: where 15% of the tokens are masked, the projection costs 15% of what it would over all.
"""

import torch
from torch import Tensor

from shoal.models.loss import linear_cross_entropy, rows_at_once
from shoal.models.token_losses import token_losses
from shoal.models.transformer import Transformer
from shoal.tasks.task import Batch


def loss_at(model: Transformer, hidden_BTD: Tensor, targets_BT: Tensor, places_N: Tensor) -> Tensor:
    """Summed cross entropy of the targets at `places` of the flattened batch."""
    hidden_ND, targets_N = _gathered(model, hidden_BTD, targets_BT, places_N)
    return linear_cross_entropy(hidden_ND, model.head_weight, targets_N, model.loss_kernel, model.head_bias)


@torch.no_grad()
def correct_at(model: Transformer, hidden_BTD: Tensor, targets_BT: Tensor, places_N: Tensor) -> Tensor:
    """How many of the targets at `places` are the likeliest token there."""
    hidden_ND, targets_N = _gathered(model, hidden_BTD, targets_BT, places_N)
    rows = rows_at_once(model.head_weight)
    found = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
    for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
        logits = torch.nn.functional.linear(hidden, model.head_weight, model.head_bias)
        found += (logits.argmax(-1) == targets).sum()
    return found


def losses_by_piece(model: Transformer, hidden_BTD: Tensor, batch: Batch) -> Tensor:
    """Summed cross entropy [pieces] of the targets at the batch's places, each piece's by itself, in fp32."""
    assert batch.pieces is not None and batch.at is not None
    hidden_ND, targets_N = _gathered(model, hidden_BTD, batch.targets, batch.at)
    losses_N = token_losses(hidden_ND, model.head_weight, targets_N)
    piece_N = torch.searchsorted(batch.pieces.starts, batch.at, right=True) - 1
    return losses_N.new_zeros(len(batch.pieces.starts)).index_add(0, piece_N, losses_N)


def _gathered(model: Transformer, hidden_BTD: Tensor, targets_BT: Tensor, places_N: Tensor) -> tuple[Tensor, Tensor]:
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, places_N)
    return model.before_head(hidden_ND), targets_BT.flatten().index_select(0, places_N)
