"""Token streams of documents whose tokens tell where they are from."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from shoal.data.shards import Shard, TokenStream

END = 99
"""The end-of-text of these streams; document d holds d · 1000 and the numbers after, d from 1."""

DOCUMENT_LENGTHS = st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(any)


def documents_of(lengths: list[int]) -> list[list[int]]:
    return [[1000 * number + token for token in range(length)] for number, length in enumerate(lengths, 1)]


def stream_of(folder: Path, lengths: list[int], shards: int = 1, distinct: bool = True) -> TokenStream:
    """The documents, each followed by `END`, in some files; `distinct` False: all of one token, of any length."""
    tokens = [token for document in documents_of(lengths) for token in [*document, END]]
    values = np.array(tokens, dtype="<u4")
    if not distinct:
        values[values != END] = 1
    parts = []
    for number, piece in enumerate(np.array_split(values, shards)):
        path = folder / f"train-{number:05}.bin"
        piece.tofile(path)
        parts.append(Shard(path, len(piece), f"{number} {hash(piece.tobytes())}"))
    return TokenStream(tuple(parts), "<u4", len(lengths), sum(lengths))
