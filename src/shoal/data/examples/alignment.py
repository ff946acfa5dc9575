"""Which tokens stand for which words, or for which characters, of a text.

Words are read one by one, as `transformers` does where a text `is_split_into_words`. A byte-level tokenizer tells a word
behind a space from one that begins a text or follows a sign; words that are put together by spaces are given to it with a
space in front, the first as well: what `add_prefix_space` does there.
"""

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shoal.data.tokenizer import TextTokenizer


class Aligner:
    """Encodes without special tokens; what looks like one in a text is text."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.library = Tokenizer.from_str(tokenizer.library.to_str())
        self.library.encode_special_tokens = True
        tree = json.loads(self.library.to_str())
        self.is_byte_level = '"ByteLevel"' in json.dumps(tree["pre_tokenizer"])
        # a token a character, and none for others, of which `TextTokenizer.encode` tells better than the library
        self.is_char = tree["model"]["type"] == "WordLevel" and tokenizer.unknown is None

    def words(self, words: Sequence[str], spaced: Sequence[bool]) -> list[NDArray[np.int64]]:
        """The tokens of each word, one at least: unknown where the tokenizer leaves nothing of it.

        `spaced`: whether each stands behind a space.
        """
        if self.is_char:
            found = [self.tokenizer.encode(word) for word in words]
        else:
            given = [f" {word}" if space and self.is_byte_level else word for word, space in zip(words, spaced, strict=True)]
            encoding = self.library.encode(given, is_pretokenized=True, add_special_tokens=False)
            ids = np.array(encoding.ids, dtype=np.int64)
            borders = np.searchsorted(np.array(encoding.word_ids, dtype=np.int64), np.arange(len(words) + 1))
            found = [ids[start:end] for start, end in pairwise(borders)]
        nothing = self.tokenizer.end_of_text if self.tokenizer.unknown is None else self.tokenizer.unknown
        return [tokens if len(tokens) else np.array([nothing], dtype=np.int64) for tokens in found]

    def characters(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(tokens, [tokens, 2] of where each begins and ends in the text); of a character's bytes each is all of it."""
        if self.is_char:
            ids = self.tokenizer.encode(text)
            return ids, np.arange(len(ids))[:, None] + np.array([0, 1])
        encoding = self.library.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int64), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
