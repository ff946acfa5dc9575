"""Text files as one stream of tokens, for evaluating a model on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoal.core.files import sha256
from shoal.data.shards import Shard, TokenStream, token_dtype
from shoal.data.sources import open_sources
from shoal.data.tokenizer import TextTokenizer


def tokenize_sources(specs: Sequence[str], tokenizer: TextTokenizer, folder: Path, text_field: str = "text") -> TokenStream:
    """Tokenize sources into one file under `folder`; documents begin after an end-of-text token, as in training."""
    path, dtype = folder / "text.bin", token_dtype(tokenizer.vocabulary)
    end = np.array([tokenizer.end_of_text], dtype=dtype)
    tokens, size, documents, inside = 1, 0, 0, False
    with path.open("wb") as file:
        file.write(end.tobytes())
        for source in open_sources(specs, text_field):
            for document in source:
                ids = tokenizer.encode(document.text).astype(dtype)
                inside = document.continues
                file.write(ids.tobytes() if inside else ids.tobytes() + end.tobytes())
                tokens += len(ids) + (not inside)
                size += len(document.text.encode())
                documents += not inside
    return TokenStream((Shard(path, tokens, sha256(path)),), dtype, documents, size)
