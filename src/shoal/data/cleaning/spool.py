"""The kept text of a batch as a Parquet file (zstd), and arrays as `.npy`: what any other tool could read too."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Item(NamedTuple):
    """A document's judged beginning (`head`), or a piece that follows it; `document` is its number in the sources."""

    document: int
    name: str
    text: str
    head: bool
    continues: bool


def pack_texts(items: Sequence[Item]) -> bytes:
    """Items as the bytes of a Parquet file."""
    import pyarrow as arrow
    from pyarrow import parquet

    columns = {name: [getattr(item, name) for item in items] for name in Item._fields}
    types = (arrow.int64(), arrow.large_string(), arrow.large_string(), arrow.bool_(), arrow.bool_())
    schema = arrow.schema(list(zip(Item._fields, types, strict=True)))
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table(columns, schema=schema), sink, compression="zstd", use_dictionary=False)
    return bytes(sink.getvalue().to_pybytes())


def read_texts(path: Path) -> Iterator[Item]:
    """The items of a file, in order."""
    from pyarrow import parquet

    table = parquet.read_table(path)
    for row in zip(*(table.column(name).to_pylist() for name in Item._fields), strict=True):
        yield Item(*row)


def pack_array(array: NDArray[Any]) -> bytes:
    """An array as the bytes of an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
