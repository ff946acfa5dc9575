"""Keys and values of the tokens seen so far, so that generating a token costs one token's work.

Each row of a cache has a length of its own: texts of different lengths are read, and go on, together, and each computes what
it would alone. Between tokens rows may be reordered, repeated or left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.models.reach import Reach


class LayerCache(NamedTuple):
    """One layer's keys and values [rows, kv_heads, capacity, head_dim], and where its next tokens belong.

    `at`: the places of these, the same in all rows or [rows, tokens]; `end`: up to where anything is visible then; `mask`:
    who sees what, for `scaled_dot_product_attention` (None: plain causal attention); `rows`: of which rows the tokens are
    (None: of all).
    """

    keys: Tensor
    values: Tensor
    at: slice | Tensor
    end: int
    mask: Tensor | None
    rows: Tensor | None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the tokens' [rows, kv_heads, tokens, head_dim]; return all up to `end`."""
        rows = slice(None) if self.rows is None else self.rows
        for there, new in ((self.keys, keys.to(self.keys.dtype)), (self.values, values.to(self.values.dtype))):
            if isinstance(self.at, slice):
                there[rows, :, self.at] = new
            else:
                row = torch.arange(len(new), device=new.device) if self.rows is None else self.rows
                there[row[:, None], :, self.at] = new.transpose(1, 2)
        return self.keys[rows, :, : self.end], self.values[rows, :, : self.end]


@dataclass
class Cache:
    """All layers' keys and values, allocated once; `lengths` [rows], on the CPU: how many tokens of each row are filled.

    A row that was padded at its end is mended by setting its length: what is beyond is overwritten, and never seen. `rows`:
    which rows of the tensors these are, where not all.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    rows: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max())

    def layers(self, tokens: int, reach: Reach | None = None) -> tuple[slice | Tensor, list[LayerCache]]:
        """(positions of the next `tokens` of each row, the layers that take them up).

        `reach`: who sees whom, in places of the row [rows, tokens], where that is not everything before.
        """
        device, start, end = self.keys[0].device, int(self.lengths[0]), self.length + tokens
        places_RT = self.lengths.to(device)[:, None] + torch.arange(tokens, device=device)
        level = bool((self.lengths == start).all())
        at = slice(start, end) if level else places_RT
        mask = None
        if reach is not None or not level:
            mask = _mask(places_RT, end, reach)
        elif tokens > 1 and start:
            mask = torch.ones(tokens, end, dtype=torch.bool, device=device).tril(start)
        positions = at if reach is None else places_RT - reach.low
        return positions, [LayerCache(*pair, at, end, mask, self.rows) for pair in zip(self.keys, self.values, strict=True)]

    def part(self, rows: Sequence[int]) -> "Cache":
        """Some rows, in this order, which share the memory; their lengths are their own, to be put back.

        Rows that follow each other are a view; others are gathered anew for each layer and token, which costs as much memory
        traffic as attention itself.
        """
        lengths, first = self.lengths[list(rows)], rows[0]
        if list(rows) == list(range(first, first + len(rows))):
            keys, values = ([tensor[first : first + len(rows)] for tensor in kind] for kind in (self.keys, self.values))
            return Cache(keys, values, lengths)
        return Cache(self.keys, self.values, lengths, torch.tensor(rows, device=self.keys[0].device))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, int64 [rows] on the CPU, in this order: one may come twice, or not at all."""
        device, end = self.keys[0].device, self.length
        if len(rows) != len(self.lengths):
            of = rows.to(device)
            self.keys, self.values = ([tensor.index_select(0, of) for tensor in kind] for kind in (self.keys, self.values))
        else:  # as many: only those that change are copied
            changed = (rows != torch.arange(len(rows))).nonzero()[:, 0]
            to, of = changed.to(device), rows[changed].to(device)
            for tensor in (*self.keys, *self.values) if len(changed) else ():
                tensor[to, :, :end] = tensor[of, :, :end]
        self.lengths = self.lengths[rows]


def make_cache(layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, like: Tensor) -> Cache:
    """An empty cache, with the type and device of `like`."""
    shape = (rows, kv_heads, capacity, head_dim)
    # zeros: what a row doesn't see counts zero times, which must not be zero times NaN
    keys, values = ([like.new_zeros(shape) for _ in range(layers)] for _ in range(2))
    return Cache(keys, values, torch.zeros(rows, dtype=torch.int64))


def _mask(places_RT: Tensor, end: int, reach: Reach | None) -> Tensor:
    position = torch.arange(end, device=places_RT.device)
    high_RT = places_RT + 1 if reach is None or reach.high is None else reach.high
    seen_RTS = position < high_RT[..., None]
    if reach is not None:
        seen_RTS &= position >= reach.low[..., None]
    return seen_RTS.unsqueeze(1)
