"""A document under judgement, and what several stages measure of it, each measured once.

English is counted in words, Chinese and Japanese, which have no spaces, in characters: `words` are these units. A word is
about 1.5 characters there, so what is said of n words is asked of 1.5 n characters.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SPACELESS = frozenset({"zh", "ja"})
CHARACTERS_PER_WORD = 1.5

# Han, kana, and half-width kana; also the planes of rare Han.
_IDEOGRAM = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_KNOWN_WORDS = 200_000


@dataclass(frozen=True)
class Dropped:
    """Why a document is not kept: the rule, and what was found."""

    rule: str
    found: str = ""


@dataclass
class Draft:
    """Text of a document, or of its judged beginning, and its language (empty: not asked)."""

    text: str
    language: str = ""

    @cached_property
    def spaceless(self) -> bool:
        """Whether it is counted in characters: by its language, else by what most of its letters are."""
        if self.language:
            return self.language in SPACELESS
        return not self.text.isascii() and 2 * len(_IDEOGRAM.findall(self.text)) > sum(map(len, _WORD.findall(self.text)))

    @cached_property
    def words(self) -> list[str]:
        """What is between spaces; in a spaceless language each character, and each run of other letters or digits."""
        return split_units(self.text) if self.spaceless else self.text.split()

    @cached_property
    def units(self) -> list[str]:
        """Words without punctuation and case, by which texts are compared."""
        return split_units(self.text.lower())

    @cached_property
    def unit_hashes(self) -> Hashes:
        """A hash of each unit."""
        return hash_words(self.units)

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, without space around them."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    def span(self, words: int) -> int:
        """How many units `words` words are."""
        return int(words * CHARACTERS_PER_WORD) if self.spaceless else words


Stage = Callable[[Draft], Draft | Dropped]


def split_units(text: str) -> list[str]:
    """Runs of letters and digits; each Han or kana character by itself."""
    return _WORD.findall(text if text.isascii() else _IDEOGRAM.sub(r" \g<0> ", text))


def count_digits(text: str) -> int:
    """How many of the ten digits of ASCII it has."""
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded) - len(encoded.translate(None, b"0123456789"))


class _KnownWords(dict[str, int]):
    """Hashes of words met before. They must be the same in every process, which Python's own are not."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _KNOWN_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = int.from_bytes(digest, "little")
        return self[word]


_known_words = _KnownWords()


def hash_words(words: Sequence[str]) -> Hashes:
    """64-bit hashes `[words]`."""
    return np.fromiter(map(_known_words.__getitem__, words), np.uint64, len(words))


def hash_ngrams(words: Hashes, size: int) -> Hashes:
    """Hashes `[max(words - size + 1, 0)]` of all runs of `size` words: a polynomial over 2^64, then mixed."""
    count = len(words) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    value = words[:count].copy()
    for offset in range(1, size):
        value *= _MULTIPLIER
        value += words[offset : offset + count]
    value ^= value >> np.uint64(29)
    value *= _MULTIPLIER
    value ^= value >> np.uint64(32)
    return value
