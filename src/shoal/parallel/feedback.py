"""What codecs have dropped of a rank's gradients, kept in fp32 for the next step (Seide et al. 2014), by parameter name.

It lies as gradients do when they are encoded, in a flat buffer that is as large as those of the whole model, on every rank:
where optimizer state, gradients or weights are divided, too, as each rank drops parts of all its own gradients. Checkpoints
have it by name, so it goes on in any other layout. Where fewer ranks go on, they add up what several had kept; where more
do, some begin with nothing: what all ranks have kept together stays the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a parameter's gradient lies in a flat buffer: in one piece from `offset` on."""

    name: str
    shape: torch.Size
    offset: int

    @property
    def end(self) -> int:
        """Behind it."""
        return self.offset + self.shape.numel()

    def view(self, flat: Tensor) -> Tensor:
        """The parameter's part of a buffer."""
        return flat[self.offset : self.end].view(self.shape)


def find_gaps(places: Sequence[Place], length: int) -> list[slice]:
    """What of a buffer lies in none of the places."""
    ordered = sorted(places, key=lambda place: place.offset)
    starts, ends = [0, *(place.end for place in ordered)], [*(place.offset for place in ordered), length]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


class Feedback:
    """Of `places` in a flat buffer of `length`, in which other values than theirs may lie between."""

    def __init__(self, places: Sequence[Place], length: int, device: torch.device) -> None:
        self.places = places
        self.flat = torch.zeros(length, device=device)
        edges = [
            0,
            *(edge for place in sorted(places, key=lambda place: place.offset) for edge in (place.offset, place.end)),
        ]
        between = zip(edges[0::2], [*edges[1::2], length], strict=True)
        self.gaps = [slice(start, end) for start, end in between if start < end]

    def clear_gaps(self) -> None:
        """Call it after a step: some codecs make something of nothing, and no checkpoint would have that."""
        for gap in self.gaps:
            self.flat[gap].zero_()

    def state(self) -> dict[str, Tensor]:
        """By `parameter name/dropped`."""
        return {f"{place.name}/dropped": place.view(self.flat) for place in self.places}

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """The sum of what ranks had."""
        load_dropped(self.places, self.flat, states)


class ChunkedFeedback:
    """Of parameters whose gradients lie in chunks of rows, one chunk of each in the row of a rank, as in `fully_shard`.

    `rows` [ranks, n] begins as these chunks do; n, a multiple of `multiple`, may be more. A chunk has as many rows for every
    rank, of which the last ranks' may be beyond the parameter.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], ranks: int, multiple: int, device: torch.device) -> None:
        self.shapes, self.columns = shapes, {}
        position = 0
        for name, shape in shapes.items():
            length = -(-shape[0] // ranks) * shape[1:].numel()
            self.columns[name] = slice(position, position + length)
            position += length
        self.used = position
        self.rows = torch.zeros(ranks, position + -position % multiple, device=device)

    def clear_gaps(self) -> None:
        """Call it after a step: some codecs make something of nothing, and no checkpoint would have that."""
        self.rows[:, self.used :].zero_()
        for name, shape in self.shapes.items():
            columns = self.columns[name]
            length = columns.stop - columns.start
            for rank in range(shape.numel() // length, len(self.rows)):
                beyond = max(0, shape.numel() - rank * length)
                self.rows[rank, columns.start + beyond : columns.stop].zero_()

    def state(self) -> dict[str, Tensor]:
        """By `parameter name/dropped`."""
        return {
            f"{name}/dropped": self.rows[:, self.columns[name]].flatten()[: shape.numel()].view(shape)
            for name, shape in self.shapes.items()
        }

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """The sum of what ranks had."""
        self.rows.zero_()
        places = [Place(name, shape, 0) for name, shape in self.shapes.items()]
        for place in places:
            columns = self.columns[place.name]
            chunks = self.rows.new_zeros(len(self.rows) * (columns.stop - columns.start))
            load_dropped([place], chunks, states)
            self.rows[:, columns] = chunks.view(len(self.rows), -1)


def load_dropped(places: Sequence[Place], flat: Tensor, states: Sequence[Mapping[str, Tensor]]) -> None:
    """Fill a flat buffer with the sum of ranks' feedback; that of another division by tensor ranks is nobody's."""
    flat.zero_()
    for state in states:
        for place in places:
            value = state.get(f"{place.name}/dropped")
            if value is not None and value.shape == place.shape:
                place.view(flat).add_(value.to(flat.device))
