"""What a server holds: its portion of the parameters in fp32, and its part of the optimizer's state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.parallel.codecs.codec import Codec
from shoal.parallel.server.partition import Portion
from shoal.parallel.shards import Box, Shard, Shards, squared_norm

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]
"""A portion's numbers, as they lie on their server."""


class Steps(Protocol):
    """An optimizer."""

    def step(self, share: float) -> None:
        """One step at `share` of every peak learning rate, from the parameters' `.grad`."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All state, by `parameter name/kind`."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        ...


class ParameterServer:
    """One server. It does one thing after the other, and never waits: `server.clock` decides who may go on when.

    `shapes`: of the whole parameters; `build` makes the optimizer over this portion of them.
    """

    def __init__(
        self, portion: Portion, shapes: Mapping[str, torch.Size], codec: Codec, build: Callable[[Shards], Steps]
    ) -> None:
        self.portion, self.codec = portion, codec
        self.flat, self.gradient = torch.zeros(portion.length), torch.zeros(portion.length)
        self.shards: Shards = {}
        for piece in portion.pieces:
            shape, size = shapes[piece.name], piece.end - piece.start
            whole = size == shape.numel()
            value = nn.Parameter(self.flat[piece.within].view(shape if whole else (size,)))
            value.grad = self.gradient[piece.within].view_as(value)
            boxes = () if whole else (Box.piece(shape, piece.start, piece.end),)
            self.shards[piece.name] = Shard(value, shape, boxes)
        self.optimizer = build(self.shards)
        self.steps_done = 0
        self._pushed: dict[int, tuple[int, Tensor]] = {}
        self._norm: tuple[int, float] = (-1, 0.0)

    def seed(self, step: int, values: Vector, state: dict[str, NDArray[Any]]) -> None:
        """Begin with these parameters and, if any, this optimizer state, before `step`."""
        self.flat.copy_(_tensor(values))
        if state:
            self.optimizer.load_state_dict({key: _tensor(value) for key, value in state.items()})
        self.steps_done = step

    def push(self, rank: int, step: int, payload: Bytes) -> None:
        """Keep a worker's gradients until all have met."""
        self._pushed[rank] = (step, _tensor(payload))

    def add_up(self, step: int, ranks: Sequence[int]) -> float:
        """Sum what these workers have pushed, in their order; the sum's squared norm. Asked again, the same answer."""
        if self._norm[0] == step:
            return self._norm[1]
        for index, rank in enumerate(ranks):
            pushed_at, payload = self._pushed.pop(rank)
            assert pushed_at == step
            self.codec.decode(payload, self.gradient, add=index > 0)
        self._norm = (step, squared_norm(self.shards).item())
        return self._norm[1]

    def step(self, step: int, factor: float, share: float) -> None:
        """Step the optimizer by `factor` times the sum; the first worker that asks decides, the others ask for the same."""
        if step < self.steps_done:
            return
        self.steps_done = step + 1
        self.gradient.mul_(factor)
        self.optimizer.step(share)

    def apply(self, payload: Bytes, factor: float, share: float) -> None:
        """Step the optimizer by `factor` times one worker's gradients, at once."""
        self.codec.decode(_tensor(payload), self.gradient)
        self.gradient.mul_(factor)
        self.optimizer.step(share)

    def pull(self) -> Vector:
        """The parameters."""
        return self.flat.numpy()

    def state(self) -> tuple[Vector, dict[str, NDArray[Any]]]:
        """The parameters and the optimizer's state, of one moment."""
        return self.flat.numpy(), {key: value.numpy() for key, value in self.optimizer.state_dict().items()}


def _tensor(array: NDArray[Any]) -> Tensor:
    """A copy: what came by the network may not be written to, and is held by others."""
    return torch.from_numpy(np.array(array))
