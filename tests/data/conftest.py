"""Small real corpora on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import sentences

from shoal.core.recipe import Data, Tokenizer
from shoal.data.prepare import Prepared, prepare
from shoal.data.tokenizer import TextTokenizer, train_bpe


@pytest.fixture(scope="session")
def bpe() -> TextTokenizer:
    """Byte-level BPE with 300 tokens."""
    return train_bpe(sentences(300), 300)


@pytest.fixture
def prepared(tmp_path: Path, bpe: TextTokenizer) -> Callable[..., Prepared]:
    """Prepare sources with the small BPE in `tmp_path / "corpus"`, in shards of 20 kB."""
    bpe.write(tmp_path / "bpe")

    def run(*sources: Path, directory: str = "corpus", **changes: object) -> Prepared:
        data = {"sources": [str(source) for source in sources], "shard_megabytes": 0.02, "held_out": 0.2, **changes}
        return prepare(Data(**data), Tokenizer(path=str(tmp_path / "bpe")), tmp_path / directory)  # type: ignore[arg-type]

    return run
