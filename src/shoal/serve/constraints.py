"""Texts that must be of a JSON schema, a regular expression or a Lark grammar: which tokens may come next, by `llguidance`.

JSON is written on one line, with a space after each comma and colon, as most of it is: a model that knows little could
otherwise write spaces for ever.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.core.errors import InputError, ShoalError
from shoal.core.extras import library
from shoal.data.tokenizer import TextTokenizer
from shoal.serve.detokenizer import token_text
from shoal.serve.request import Constraint

JSON_ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraints:
    """What starts guides of one tokenizer; made ready at the first, or before (0.5 s for 50,000 tokens)."""

    def __init__(self, tokenizer: TextTokenizer, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, sorted(ends)
        self._vocabulary = tokenizer.vocabulary
        self._known: Any = None
        self._making = Lock()

    def make_ready(self) -> Any:
        """Let the library know the tokenizer, if it doesn't; returns the library. `InputError` where it is not installed."""
        llguidance = library("llguidance", "serve")
        with self._making:
            if self._known is None:
                self._known = self._know(llguidance)
        return llguidance

    def guide(self, constraint: Constraint) -> "Guide":
        """Of a text's beginning; `InputError` for what is no schema, expression or grammar, or can't be followed."""
        llguidance = self.make_ready()
        limits = llguidance.LLParserLimits(verbose_errors=False)
        grammar = _grammar(llguidance.LLMatcher, constraint)
        matcher = llguidance.LLMatcher(self._known, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # whether there is a first token
        if matcher.is_error():
            raise InputError(f"the {_NAMES[constraint.kind]} can't be followed: {_reason(matcher)}")
        return Guide(matcher, self._vocabulary)

    def _know(self, llguidance: Any) -> Any:
        tokenizer = self._tokenizer
        known = {"n_vocab": self._vocabulary, "eos_token": self._ends}
        try:
            return llguidance.LLTokenizer(tokenizer.library.to_str(), **known)
        except ValueError:  # of a kind that it doesn't know: told by what its tokens spell
            return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Spelled(tokenizer)), **known)


class Guide:
    """Where a text is in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def restrict(self, logits_V: Tensor) -> Tensor:
        """The logits, -∞ where a token can't come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed_V = np.unpackbits(bits, bitorder="little", count=self._vocabulary).astype(bool)
        return logits_V.masked_fill(~torch.from_numpy(allowed_V).to(logits_V.device), -torch.inf)

    def go_on(self, token: int) -> None:
        """Take in a token that may come next."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing but an end can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ShoalError(f"the text can't go on as it was asked for: {_reason(self._matcher)}")


def _reason(matcher: Any) -> str:
    """The library's error in one line, without the drawing of where it is."""
    lines = [line.strip() for line in str(matcher.get_error()).splitlines()]
    if lines[0].startswith("NoExtension"):
        return "no token of the vocabulary spells what would have to follow"
    return " ".join(line for line in lines if line.strip("^") and not re.match(r"\d+ \|", line))


_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}


def _grammar(matcher: Any, constraint: Constraint) -> str:
    what = constraint.what
    if constraint.kind == "json_schema":
        if not isinstance(what, dict | bool):
            raise InputError(f"a JSON schema is an object, not {type(what).__name__}")
        try:
            return str(matcher.grammar_from_json_schema(json.dumps(what), overrides=JSON_ON_ONE_LINE))
        except (TypeError, ValueError) as error:
            raise InputError(f"the JSON schema can't be followed: {error}") from None
    if not isinstance(what, str):
        raise InputError(f"a {_NAMES[constraint.kind]} is a text, not {type(what).__name__}")
    make = matcher.grammar_from_regex if constraint.kind == "regex" else matcher.grammar_from_lark
    return str(make(what))


@dataclass
class _Spelled:
    """A tokenizer as `llguidance` asks for one: the bytes of each token."""

    tokenizer: TextTokenizer

    @property
    def eos_token_id(self) -> int:
        return self.tokenizer.end_of_text

    @property
    def bos_token_id(self) -> None:
        return None

    @property
    def special_token_ids(self) -> list[int]:
        return [*self.tokenizer.special_tokens.values()]

    @property
    def tokens(self) -> list[bytes]:
        return [token_text(self.tokenizer, token).encode() for token in range(self.tokenizer.vocabulary)]

    def __call__(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.tokenizer.encode(text).tolist()
        except InputError:  # a character that no token spells: the mask leaves it out
            return []
        return ids
