"""What is kept of a document to find its duplicates: a hash of its text, and a MinHash of its shingles.

Shingles are runs of 3 words (4 characters of Chinese or Japanese), without case and punctuation. Of `bands × rows` random
hash functions the smallest value over a document's shingles is taken; two documents agree in each with a probability of
their Jaccard similarity J (Broder 1997, doi:10.1109/SEQUEN.1997.666900). A band is a hash of `rows` of these values, so
two documents share a band with probability

    P(J) = 1 − (1 − J^rows)^bands             32 bands of 4 rows: P(0.3) = 0.23, P(0.5) = 0.87, P(0.6) = 0.99

A shared band makes candidates. They are then compared by one byte of each value (b-bit minwise hashing, Li and König 2010,
arXiv:0910.3349): of n values m agree, and J is about (m/n − 1/256) / (1 − 1/256), within ±0.04 for n = 128.

With a tenth of the words changed, 0.9³ of the shingles stay and J = 0.729 / (2 − 0.729) = 0.57. The MinHash itself is
rensa's (Rust, 5 µs for 1,000 shingles).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from shoal.data.cleaning.draft import Draft, Hashes, hash_ngrams

SEED = 1


@dataclass(frozen=True)
class Signer:
    """How signatures are made; `bands` 0: none are."""

    shingle: int
    bands: int
    rows: int

    @property
    def values(self) -> int:
        """Hash functions."""
        return self.bands * self.rows

    def shingles(self, draft: Draft) -> Hashes:
        """Hashes `[shingles]`, at least one: a shorter document is one shingle."""
        units = draft.unit_hashes
        if not len(units):
            return hash_text(draft.text)[:1]
        return hash_ngrams(units, min(len(units), draft.span(self.shingle)))

    def sign(self, shingles: Sequence[Hashes]) -> tuple[Hashes, NDArray[np.uint8]]:
        """Of documents' shingles, `bands [bands, documents]` and the comparable bytes `[documents, values]`."""
        if not shingles or not self.bands:
            return np.empty((self.bands, len(shingles)), np.uint64), np.empty((len(shingles), self.values), np.uint8)
        ends = np.cumsum([0, *map(len, shingles)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(shingles), ends, num_perm=self.values, seed=SEED
        )
        values = np.array(matrix.to_rows(), dtype=np.uint64)
        mixed = values.reshape(len(shingles), self.bands, self.rows)
        bands = np.stack([hash_ngrams(row.ravel(), self.rows)[:: self.rows] for row in mixed], axis=1)
        # low bits of a minimum are as random as any, its high bits are mostly zero
        return bands, (values & np.uint64(0xFF)).astype(np.uint8)


def hash_text(text: str) -> Hashes:
    """128 bits of a text's hash, as `[2]`."""
    return np.frombuffer(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), np.uint64)


def similarity(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of pairs, from bytes `[pairs, values]`."""
    agree = (left == right).mean(axis=1)
    return (agree - 1 / 256) / (1 - 1 / 256)
