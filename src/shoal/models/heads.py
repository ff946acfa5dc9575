"""What stands on top of a Transformer that was fine-tuned: a few numbers for each text, or for each token.

Rows may hold several pieces (a text, or a pair of texts, each) one after the other: a piece is where it begins in the
flattened rows, and its length. Shape suffixes: N tokens of all rows, P pieces, M tokens of all pieces, D dim.
"""

import torch
from torch import Tensor, nn

from shoal.models.config import TransformerConfig


class TaskHead(nn.Module):
    """Scores of texts (`sequence`), after pooling them, or of tokens (`token`, `span`)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.dropout = nn.Dropout(config.head_dropout)
        self.attention = nn.Linear(config.dim, 1, bias=False) if config.pooling == "attention" else None
        # as the decoders' classifiers of the Hugging Face layout
        self.score = nn.Linear(config.dim, config.outputs, bias=not config.causal or config.head != "sequence")

    def forward(self, features: Tensor) -> Tensor:
        """[..., dim] to scores [..., outputs], in fp32."""
        scores: Tensor = self.score(self.dropout(features))
        return scores.float()

    def pool(self, hidden_ND: Tensor, starts_P: Tensor, lengths_P: Tensor) -> Tensor:
        """One vector a piece [pieces, dim]."""
        if self.pooling == "first":
            return hidden_ND[starts_P]
        if self.pooling == "last":
            return hidden_ND[starts_P + lengths_P - 1]
        number_M, place_M = places(starts_P, lengths_P)
        hidden_MD = hidden_ND[place_M]
        if self.attention is None:
            summed_PD = hidden_ND.new_zeros(len(starts_P), hidden_ND.shape[1]).index_add(0, number_M, hidden_MD)
            return summed_PD / lengths_P[:, None]
        score_M = self.attention(hidden_MD).squeeze(-1)
        most_P = score_M.new_full((len(starts_P),), -torch.inf).scatter_reduce(0, number_M, score_M.detach(), "amax")
        weight_M = (score_M - most_P[number_M]).exp()
        total_P = weight_M.new_zeros(len(starts_P)).index_add(0, number_M, weight_M)
        weighted_MD = hidden_MD * (weight_M / total_P[number_M])[:, None]
        return hidden_ND.new_zeros(len(starts_P), hidden_ND.shape[1]).index_add(0, number_M, weighted_MD)


def places(starts_P: Tensor, lengths_P: Tensor) -> tuple[Tensor, Tensor]:
    """(number of its piece, place in the flattened rows) of each token of all pieces, in their order [M]."""
    number_M = torch.repeat_interleave(torch.arange(len(starts_P), device=starts_P.device), lengths_P)
    before_P = lengths_P.cumsum(0) - lengths_P
    return number_M, torch.arange(len(number_M), device=starts_P.device) + (starts_P - before_P)[number_M]
