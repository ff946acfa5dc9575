"""Windows of a stream: beside each other, or overlapping, and every token a target once."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from shoal.data.rows import StreamRows
from shoal.data.shards import Shard, TokenStream


@pytest.mark.parametrize(("tokens", "context"), product([2, 5, 7, 8, 9, 25, 26], [1, 4, 7, 30]))
def test_every_token_is_a_target_once_with_enough_before_it(tokens: int, context: int, tmp_path: Path) -> None:
    np.arange(tokens, dtype="<u2").tofile(tmp_path / "text.bin")
    stream = TokenStream((Shard(tmp_path / "text.bin", tokens, ""),), "<u2", 1, tokens)
    for stride in range(1, context + 1):
        rows = StreamRows(stream, context, partial=True, stride=stride)
        numbers = np.arange(rows.samples, dtype=np.int64)
        read = rows.read(numbers, numbers.astype(np.uint64))
        places = np.argwhere(read.following >= 0)
        targets = read.following[read.following >= 0]
        assert targets.tolist() == list(range(1, tokens))
        before = places[:, 1] + 1
        assert (before >= np.minimum(targets, context - stride + 1)).all()
        assert (read.tokens[tuple(places.T)] == targets - 1).all()
