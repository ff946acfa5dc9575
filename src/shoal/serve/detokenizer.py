"""From tokens, one after another, to text that may be shown: whole characters, and nothing of a stop string.

A token may hold a part of a character only, and some tokenizers write a space only between tokens. So what is new is read
together with the few tokens before it, and is held back while its end could still change. Byte-level tokenizers, which are
most, need none of that: their tokens are bytes.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from shoal.data.tokenizer import TextTokenizer

UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""
BEFORE = 6
"""Tokens of the prompt that the first ones are read with."""
HALF = 3
"""Tokens that half a character has at most: its bytes but one."""
LONGEST_HELD = 16
"""Tokens that are held back at most for a character that might come."""


class Detokenizer(Protocol):
    """The text of tokens that follow a prompt."""

    def put(self, token: int) -> str:
        """The characters that have become whole with this token, if any."""

    def rest(self) -> str:
        """What has not been shown, as it would be if nothing followed."""


def make_detokenizer(tokenizer: TextTokenizer, prompt: Sequence[int]) -> Detokenizer:
    """For tokens that follow this prompt."""
    return (ByteDetokenizer if tokenizer.concatenates else AnyDetokenizer)(tokenizer, prompt)


class ByteDetokenizer:
    """Of a byte-level tokenizer: a decoder of UTF-8 that is given a token's bytes at a time."""

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._bytes_of = tokenizer.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in prompt[-BEFORE:]:
            self._decoder.decode(self._bytes_of(token))
        # a character that a prompt ends within belongs to the prompt; bytes that can't become one count one by one
        self._skipped = len(self._held.decode(errors="replace"))

    def put(self, token: int) -> str:
        """As `Detokenizer.put`."""
        text = self._decoder.decode(self._bytes_of(token))
        if text and self._skipped:
            text, self._skipped = text[self._skipped :], max(0, self._skipped - len(text))
        return text

    def rest(self) -> str:
        """As `Detokenizer.rest`."""
        return self._held.decode(errors="replace")[self._skipped :]

    @property
    def _held(self) -> bytes:
        """The bytes of a character that is not whole."""
        return self._decoder.getstate()[0]


class AnyDetokenizer:
    """Of any tokenizer, by decoding what is new with what stands before it."""

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = [*prompt[-BEFORE:]]
        # those up to `_told` have been shown; of them, those from `_before` on are read again with what is new
        self._before, self._told = 0, len(self._tokens)

    def put(self, token: int) -> str:
        """As `Detokenizer.put`."""
        self._tokens.append(token)
        new = self.rest()
        if not new:
            return ""
        if not new.endswith(UNFINISHED):
            return self._tell(new, len(self._tokens))
        held = self._tokens[self._told :]
        if len(held) > LONGEST_HELD:
            # not half of a character, but bytes that are none: all but the last ones can be told, where that cuts nothing
            for kept in range(HALF, LONGEST_HELD):
                first, whole = self._tokens[self._before : -kept], self._tokens[self._before : self._told]
                text = self._tokenizer.decode(first)[len(self._tokenizer.decode(whole)) :]
                later = self._tokenizer.decode(held)[len(self._tokenizer.decode(held[:-kept])) :]
                if text + later == new:
                    return self._tell(text, len(self._tokens) - kept)
        return ""

    def _tell(self, text: str, up_to: int) -> str:
        self._before, self._told = self._told, up_to
        return text

    def rest(self) -> str:
        """As `Detokenizer.rest`."""
        known = self._tokenizer.decode(self._tokens[self._before : self._told])
        return self._tokenizer.decode(self._tokens[self._before :])[len(known) :]


class StopStrings:
    """Text up to the first of some strings, of which nothing is shown, not even while it could yet be another text."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._held = ""
        self.found = False
        """Whether one has come; nothing is shown from then on."""

    def put(self, text: str) -> str:
        """What may be shown, now that this text follows."""
        if not self._words:
            return text
        self._held += text
        places = [place for word in self._words if (place := self._held.find(word)) >= 0]
        self.found = bool(places)
        safe = (
            min(places) if places else len(self._held) - max((_overlap(self._held, word) for word in self._words), default=0)
        )
        shown, self._held = self._held[:safe], "" if places else self._held[safe:]
        return shown

    def rest(self) -> str:
        """What was held back, as nothing follows."""
        return self._held


def token_text(tokenizer: TextTokenizer, token: int) -> str:
    """A token's text where it follows others."""
    before = tokenizer.end_of_text
    return tokenizer.decode([before, token])[len(tokenizer.decode([before])) :]


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that begins `word`."""
    return next((size for size in range(min(len(word), len(text)), 0, -1) if text.endswith(word[:size])), 0)
