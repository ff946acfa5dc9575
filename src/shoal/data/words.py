"""Which tokens go on with the word that the token before them began, and how many bytes of text a token is.

A tokenizer says this in its own way: WordPiece writes `##` before what continues a word, byte-level BPE and Metaspace write
the space before a word into its first token (`Ġ`, `▁`). After punctuation no space stands, so the kinds of the two
characters that meet decide there, as pre-tokenizers cut: letters go on with letters, digits with digits, other signs with
other signs. Bytes within a character always go on. In writing without spaces (Chinese, Japanese, Thai, …) every token is a
word: what is one there takes a dictionary.
"""

import json
from dataclasses import dataclass
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from shoal.data.byte_level import read_bytes
from shoal.data.tokenizer import TextTokenizer

BREAK, LETTER, DIGIT, SIGN, JOINED = range(5)
METASPACE = "▁"
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x312F), (0x31A0, 0x9FFF), (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Code points of Thai, Lao, Burmese, Khmer, Chinese and Japanese."""


@dataclass(frozen=True)
class Words:
    """How tokens are written: the kind of their `first` and `last` character, and their `bytes`, each [vocabulary]."""

    first: NDArray[np.int8]
    last: NDArray[np.int8]
    bytes: NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "Words":
        """Of a tokenizer. Special tokens belong to no word, and are no text."""
        spelling = _Spelling(json.loads(tokenizer.library.to_str()))
        size = tokenizer.vocabulary
        first, last, lengths = np.zeros(size, np.int8), np.zeros(size, np.int8), np.zeros(size, np.int64)
        special = set(special_ids(tokenizer).tolist())
        for written, token in tokenizer.library.get_vocab(with_added_tokens=True).items():
            if token not in special and written:
                first[token], last[token], lengths[token] = spelling.read(written)
        return cls(first, last, lengths)

    def continues(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where a token goes on with the word of the one before it, of rows [rows, length]; ids must be at least 0."""
        first, last = (np.take(kinds, tokens, mode="clip") for kinds in (self.first, self.last))
        result = np.zeros(tokens.shape, dtype=bool)
        result[:, 1:] = (first[:, 1:] == JOINED) | ((first[:, 1:] != BREAK) & (first[:, 1:] == last[:, :-1]))
        return result


def special_ids(tokenizer: TextTokenizer) -> NDArray[np.int64]:
    """The ids that stand for no text, in order."""
    return np.array(sorted({tokenizer.end_of_text, *tokenizer.special_tokens.values()}))


class _Spelling:
    """How a tokenizer writes its tokens."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.continuing = tree["model"].get("continuing_subword_prefix") or ""
        self.byte_level = "ByteLevel" in json.dumps([tree.get("decoder"), tree.get("pre_tokenizer")])

    def read(self, written: str) -> tuple[int, int, int]:
        """(kind of the first character, kind of the last, bytes) of a token."""
        if self.continuing:
            text = written.removeprefix(self.continuing)
            return JOINED if text != written else BREAK, kind(text[-1:]), len(text.encode())
        if self.byte_level and (raw := read_bytes(written)):
            text = raw.decode(errors="replace")
            first = JOINED if raw[0] & 0xC0 == 0x80 else kind(text[0])
            if (
                raw[0] >= 0xE0 and text[0] == "\ufffd"
            ):  # the beginning of a character that is most likely Chinese or Japanese
                first = BREAK
            return first, kind(text[-1]), len(raw)
        text = written.replace(METASPACE, " ")
        return kind(text[0]), kind(text[-1]), len(text.encode())


def kind(character: str) -> int:
    """The kind of a character, as words go on or end with it."""
    if not character or character.isspace() or any(low <= ord(character) <= high for low, high in WITHOUT_SPACES):
        return BREAK
    if character.isdigit():
        return DIGIT
    # marks are vowels in the scripts of India; what can't be decoded is part of a character of many bytes
    written = character.isalpha() or category(character)[0] == "M" or character == "\ufffd"
    return LETTER if written else SIGN
