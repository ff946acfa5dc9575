"""A worker's side: gradients out, encoded, and parameters in, to and from all servers at once."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.parallel.codecs.codec import Codec, encode_with_feedback
from shoal.parallel.server.partition import Portion
from shoal.parallel.server.shard import Bytes, Vector
from shoal.parallel.shards import Shards
from shoal.parallel.wire import Wire

Remote = Callable[..., Callable[[], Any]]
"""`remote(method, *arguments)` begins a call on a server, and gives the function that waits for its result.

Calls from one worker on one server are done in the order in which they began, but for those on the clock.
"""


class Client:
    """Pushes to and pulls from `servers`, which hold `portions`; bytes are counted by `wire` in both directions.

    `feedback`: whether to keep what the codec drops, on this worker; `decay`: the share of it that is added next time.
    """

    def __init__(
        self,
        wire: Wire,
        clock: Remote,
        servers: Sequence[Remote],
        portions: Sequence[Portion],
        codec: Codec,
        feedback: bool = True,
        decay: float = 1.0,
    ) -> None:
        self.wire, self.clock, self.servers, self.portions = wire, clock, servers, portions
        self.codec, self.feedback, self.decay = codec, feedback, decay
        self.rank = wire.world.rank
        self.dropped = [torch.zeros(portion.length) for portion in portions]
        self.shards: Shards = {}

    @property
    def step_bytes(self) -> int:
        """What a worker pushes and pulls in a step."""
        return sum(self.codec.nbytes(portion.length) + 4 * portion.length for portion in self.portions)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call the clock, and wait."""
        return self.finish([self.clock(method, self.rank, *arguments)])[0]

    def encode(self) -> list[Bytes]:
        """The gradients as payloads, one a server; what the codec drops is kept."""
        return [self._encode(*pair) for pair in zip(self._gather(gradients=True), self.dropped, strict=True)]

    def _encode(self, values: Tensor, dropped: Tensor) -> Bytes:
        payload = torch.empty(self.codec.nbytes(len(values)), dtype=torch.uint8)
        if self.feedback:
            encode_with_feedback(self.codec, values, dropped, payload, self.decay)
        else:
            self.codec.encode(values, payload)
        return payload.numpy()

    def squared_norm(self, payloads: Sequence[Bytes]) -> float:
        """Of the gradients as the servers will decode them."""
        total = 0.0
        for portion, payload in zip(self.portions, payloads, strict=True):
            decoded = torch.empty(portion.length)
            self.codec.decode(torch.from_numpy(payload), decoded)
            total += torch.linalg.vector_norm(decoded).double().square().item()
        return total

    def start_push(self, method: str, payloads: Sequence[Bytes], before: Sequence[Any], after: Sequence[Any]) -> Any:
        """Begin to send each server its payload; pass the result to `finish`."""
        self.wire.count("push", sum(payload.nbytes for payload in payloads))
        pairs = zip(self.servers, payloads, strict=True)
        return [server(method, *before, payload, *after) for server, payload in pairs]

    def start(self, method: str, *arguments: Any) -> list[Callable[[], Any]]:
        """Begin the same call on all servers."""
        return [server(method, *arguments) for server in self.servers]

    def finish(self, waiting: Sequence[Callable[[], Any]]) -> list[Any]:
        """The results, when all are there."""
        began = time.perf_counter()
        results = [wait() for wait in waiting]
        self.wire.seconds_waited += time.perf_counter() - began
        return results

    def pull(self) -> None:
        """Take up the servers' parameters."""
        self.take(self.finish(self.start("pull")))

    def take(self, vectors: Sequence[Vector]) -> None:
        """Make these the model's parameters."""
        self.wire.count("pull", sum(vector.nbytes for vector in vectors))
        self._scatter(vectors)

    def seed(self, step: int, state: dict[str, Tensor]) -> None:
        """Give the servers the model's parameters, and an optimizer's state where there is one."""
        vectors = self._gather(gradients=False)
        calls = []
        for server, portion, vector in zip(self.servers, self.portions, vectors, strict=True):
            held = {piece.name: piece for piece in portion.pieces}
            mine: dict[str, NDArray[Any]] = {}
            for key, value in state.items():
                name = key.rpartition("/")[0]
                if name in held and value.shape == self.shards[name].shape:
                    piece = held[name]
                    whole = piece.end - piece.start == value.numel()
                    value = value if whole else value.reshape(-1)[piece.start : piece.end]
                elif name in self.shards and name not in held:
                    continue
                mine[key] = value.detach().cpu().numpy()
            calls.append(server("seed", step, vector.numpy(), mine))
        self.finish(calls)

    def collect(self) -> dict[str, Tensor]:
        """The servers' optimizer state, put together; the parameters of the same moment go into the model."""
        states = self.finish(self.start("state"))
        self.take([values for values, _ in states])
        whole: dict[str, Tensor] = {}
        for portion, (_, state) in zip(self.portions, states, strict=True):
            held = {piece.name: piece for piece in portion.pieces}
            for key, array in state.items():
                value, name = torch.from_numpy(np.array(array)), key.rpartition("/")[0]
                piece = held.get(name)
                if piece is None or value.shape != (piece.end - piece.start,):
                    whole[key] = value
                else:
                    shape = self.shards[name].shape
                    target = whole.setdefault(key, torch.empty(shape, dtype=value.dtype))
                    target.view(-1)[piece.start : piece.end] = value
        return whole

    def kept(self) -> dict[str, Tensor]:
        """What the codec has dropped of each parameter's gradient, in its shape."""
        found: dict[str, Tensor] = {}
        for portion, dropped in zip(self.portions, self.dropped, strict=True):
            for piece in portion.pieces:
                target = found.setdefault(piece.name, torch.zeros(self.shards[piece.name].shape))
                target.view(-1)[piece.start : piece.end] = dropped[piece.within]
        return found

    def load_kept(self, kept: dict[str, Tensor]) -> None:
        """Take up what `kept` gave."""
        for portion, dropped in zip(self.portions, self.dropped, strict=True):
            for piece in portion.pieces:
                dropped[piece.within] = kept[piece.name].reshape(-1)[piece.start : piece.end]

    def _gather(self, gradients: bool) -> list[Tensor]:
        """The model's gradients, or its parameters, as they lie on the servers."""
        vectors = []
        for portion in self.portions:
            vector = torch.zeros(portion.length)
            for piece in portion.pieces:
                value = self.shards[piece.name].value
                source = value.grad if gradients else value.detach()
                if source is not None:
                    vector[piece.within] = source.reshape(-1)[piece.start : piece.end]
            vectors.append(vector)
        return vectors

    @torch.no_grad()
    def _scatter(self, vectors: Sequence[Vector]) -> None:
        for portion, vector in zip(self.portions, vectors, strict=True):
            values = torch.from_numpy(np.array(vector))
            for piece in portion.pieces:
                self.shards[piece.name].value.view(-1)[piece.start : piece.end] = values[piece.within].to(
                    self.shards[piece.name].value.device
                )
