"""Who attends to whom, where that is not simply everything before, or everything.

Each token sees one interval of positions, itself among them. That is enough for causal and bidirectional attention, for
documents that share a row without seeing each other, for a window around each token, and for a prefix that sees itself
both ways; and an interval is what a kernel needs to skip what nobody sees.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Reach(NamedTuple):
    """A token sees positions `low` to `high`, exclusive: int32 [batch, tokens]. `high` None: to itself (causal).

    `low` is where the token's document begins, so that positions count from there.
    """

    low: Tensor
    high: Tensor | None = None

    @classmethod
    def of_documents(cls, documents_BT: Tensor, causal: bool) -> "Reach":
        """Each token's own document: a run of equal numbers in a row. Padding may be a run too."""
        tokens = documents_BT.shape[1]
        position = torch.arange(tokens, dtype=torch.int32, device=documents_BT.device)
        begins = torch.ones_like(documents_BT, dtype=torch.bool)
        begins[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        low = torch.where(begins, position, 0).cummax(1).values.int()
        if causal:
            return cls(low)
        ends = torch.ones_like(begins)
        ends[:, :-1] = begins[:, 1:]
        high = torch.where(ends, position + 1, tokens).flip(1).cummin(1).values.flip(1).int()
        return cls(low, high.contiguous())

    @classmethod
    def of_mask(cls, mask_BT: Tensor) -> "Reach":
        """An encoder's, from a mask that is true (or 1) on text and false on padding; the text of a row is one piece.

        Padding sees itself alone, so it costs no attention. Positions count from the first token of the text, so that a
        row gets what it gets without padding. `ValueError` where padding stands inside a text.
        """
        mask = mask_BT.bool()
        if bool((mask[:, 1:] > mask[:, :-1]).sum(1).add(mask[:, 0]).gt(1).any()):
            raise ValueError("a mask with padding inside a text: let the text of a row be one piece")
        low, high = cls.of_documents(mask.int(), causal=False)
        assert high is not None
        position = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device)
        return cls(torch.where(mask, low, position), torch.where(mask, high, position + 1))

    @classmethod
    def of_prefix(cls, prefix_B: Tensor, tokens: int) -> "Reach":
        """Causal, but that the first `prefix` tokens of each row see each other both ways."""
        prefix_B1 = prefix_B.int()[:, None]
        place_BT = torch.arange(tokens, dtype=torch.int32, device=prefix_B.device).expand(len(prefix_B), tokens)
        return cls(torch.zeros_like(place_BT), torch.where(place_BT < prefix_B1, prefix_B1, place_BT + 1))

    @classmethod
    def whole(cls, tokens_BT: Tensor) -> "Reach":
        """Every token sees all of its row."""
        low = torch.zeros(tokens_BT.shape, dtype=torch.int32, device=tokens_BT.device)
        return cls(low, low + tokens_BT.shape[1])

    def positions(self) -> Tensor:
        """Each token's place in its document [batch, tokens]."""
        return torch.arange(self.low.shape[1], device=self.low.device) - self.low

    def within(self, window: int) -> "Reach":
        """The same, but no further than `window` positions on either side."""
        position = torch.arange(self.low.shape[1], dtype=torch.int32, device=self.low.device)
        low = torch.maximum(self.low, position - window)
        return Reach(low, None if self.high is None else torch.minimum(self.high, position + window + 1))

    def mask(self) -> Tensor:
        """[batch, 1, tokens, tokens], true where a token sees a position."""
        position = torch.arange(self.low.shape[1], device=self.low.device)
        end = position + 1 if self.high is None else self.high
        return ((position >= self.low[..., None]) & (position < end[..., None])).unsqueeze(1)
