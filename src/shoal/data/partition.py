"""Which rank reads which sequence: a pure function, so there is nothing to save and nothing to lose.

Position p of a run is the p-th sequence that the run consumes, over all ranks and epochs. It names sample
`shuffled(seed, epoch, p mod n)` whatever the world size is; ranks only divide the positions of a step among themselves.
So a run can stop at any step and go on with another number of ranks, and repeats and skips nothing.

The shuffle is a Feistel network over the smallest even number of bits that holds n, walked until it falls below n
(cycle walking, Black and Rogaway 2002): a permutation computed for single positions, where a stored one would take 8 bytes
a sample on every rank.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.core.seeds import derive_seed

Positions = NDArray[np.int64]

ROUNDS = 6


def rank_positions(
    start: int, global_batch: int, rank: int, world: int, strategy: Literal["interleaved", "blocks"] = "interleaved"
) -> Positions:
    """Positions that a rank reads at a step; together the ranks read `[start, start + global_batch)`.

    `interleaved` takes every `world`-th, `blocks` one contiguous piece; sizes differ by one at most.
    """
    if strategy == "interleaved":
        return np.arange(start + rank, start + global_batch, world, dtype=np.int64)
    low, high = (global_batch * edge // world for edge in (rank, rank + 1))
    return np.arange(start + low, start + high, dtype=np.int64)


def samples_at(positions: Positions, samples: int, seed: int) -> Positions:
    """The sample that each position reads: every one of `samples` exactly once an epoch, in a seeded order."""
    epochs = positions // samples
    result = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = shuffled(positions[chosen] % samples, samples, derive_seed(seed, "order", int(epoch)))
    return result


def shuffled(indices: Positions, samples: int, key: int) -> Positions:
    """Where a keyed permutation of `[0, samples)` sends each index."""
    half = max(1, (max(samples - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = _round_keys(key)
    values = indices.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= np.uint64(samples)
    return values.astype(np.int64)


@lru_cache(maxsize=256)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(derive_seed(key, "round", number)) for number in range(ROUNDS))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
