"""Windows of tokens for training and evaluation.

Training reads consecutive windows of `context + 1` tokens of the concatenated documents, in shuffled order: every position
is real (no padding) and every token is a target once an epoch; the price is that a window may begin inside a document.
Reading 16 windows of 257 tokens from a memory map takes well under a millisecond, so nothing is prefetched.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import CorpusError
from shoal.data.partition import rank_positions, samples_at
from shoal.data.shards import TokenStream

Windows = NDArray[np.int64]
"""Token ids [sequences, context + 1]; -1 where there is none."""


class TrainingBatches:
    """This rank's windows, step by step; its whole state is the run's position."""

    def __init__(
        self,
        stream: TokenStream,
        context: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        strategy: Literal["interleaved", "blocks"] = "interleaved",
    ) -> None:
        self.samples = (stream.tokens - 1) // context
        if self.samples < 1:
            raise CorpusError(f"the training split has {stream.tokens} tokens, too few for one window of {context + 1}")
        if global_batch < world:
            raise CorpusError(f"train.global_batch is {global_batch}, less than one sequence for each of {world} ranks")
        self.stream, self.context, self.seed = stream, context, seed
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world, self.strategy = rank, world, strategy
        self.position = 0

    def next_step(self) -> list[tuple[int, Windows]]:
        """The micro-batches of the next step: the position of the first sequence, and [up to micro_batch, context + 1]."""
        positions = rank_positions(self.position, self.global_batch, self.rank, self.world, self.strategy)
        self.position += self.global_batch
        samples = samples_at(positions, self.samples, self.seed)
        size = self.micro_batch or len(samples)
        return [
            (int(positions[start]), self.stream.windows(samples[start : start + size] * self.context, self.context + 1))
            for start in range(0, len(samples), size)
        ]

    @property
    def epoch(self) -> float:
        """How many times the split has been read."""
        return self.position / self.samples

    def state_dict(self) -> dict[str, int]:
        """Where to go on, at any number of ranks."""
        return {"position": self.position, "samples": self.samples, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there; `CorpusError` when that order of samples is not this one."""
        mine = self.state_dict()
        for key, meaning in (("samples", "windows in its corpus"), ("seed", "as its seed")):
            if state[key] != mine[key]:
                raise CorpusError(
                    f"the checkpoint has {state[key]} {meaning}, this run {mine[key]}: samples would be repeated and "
                    "skipped. Go on with the corpus, the context and the seed that the run began with"
                )
        self.position = state["position"]


def evaluation_windows(
    stream: TokenStream, context: int, batch: int, rank: int = 0, world: int = 1, limit: int = 0
) -> Iterator[Windows]:
    """This rank's share of the split, cut without overlap: every token but the first is a target exactly once.

    Ranks take whole batches in turn. These are always full, padded with -1, so that compiled code sees one shape. `limit`
    sequences at most (0: all), spread evenly over the split.
    """
    starts = np.arange(0, stream.tokens - 1, context, dtype=np.int64)
    if not len(starts):
        raise CorpusError(f"the held-out split has {stream.tokens} tokens, too few to evaluate on")
    if 0 < limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    for first in range(rank * batch, len(starts), world * batch):
        chosen = starts[first : first + batch]
        windows = np.full((batch, context + 1), -1, dtype=np.int64)
        whole = chosen[chosen + context + 1 <= stream.tokens]
        windows[: len(whole)] = stream.windows(whole, context + 1)
        for row, start in enumerate(chosen[len(whole) :], len(whole)):
            rest = stream.windows(np.array([start]), stream.tokens - int(start))
            windows[row, : rest.shape[1]] = rest[0]
        yield windows
