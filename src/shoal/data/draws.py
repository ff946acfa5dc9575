"""Random numbers of a row: a pure function of its key, what they are for, and the place.

A counter-based generator (SplitMix64, Steele, Lea and Flood 2014): number i of a stream is computed from the stream's key
and i alone. So all numbers of all rows come from one vectorised pass, and nothing depends on which rank computes them, with
which other rows, or on numpy's generators, which may change from version to version.
"""

import numpy as np
from numpy.typing import NDArray

from shoal.core.seeds import derive_seed
from shoal.data.partition import mix

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(keys: NDArray[np.uint64], purpose: str, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) [rows, count], of the rows' keys [rows]; independent for each `purpose`."""
    states = mix(keys ^ np.uint64(derive_seed(0, purpose)))
    places = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    bits = mix(states[:, None] + places) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def subkeys(key: np.uint64, count: int) -> NDArray[np.uint64]:
    """A key for each of `count` parts of a row."""
    return mix(key + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
