"""From the recipe's `tokenizer` section to a tokenizer: the table of kinds, and what their settings are.

Adding a kind is one file with a `train_*` function, one line of `TRAINERS`, and its word in `recipe.Tokenizer.kind`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from shoal.core.recipe import Tokenizer as Choice
from shoal.data.special_tokens import BERT_TOKENS, missing_tokens
from shoal.data.tokenizer import TextTokenizer, read_tokenizer, train_bpe, with_special
from shoal.data.unigram import train_unigram
from shoal.data.wordpiece import train_wordpiece

TRAINERS: dict[str, Callable[[Iterable[str], Choice], TextTokenizer]] = {
    "bpe": lambda texts, choice: train_bpe(texts, choice.vocabulary, choice.special, choice.pattern),
    "unigram": lambda texts, choice: train_unigram(texts, choice.vocabulary, choice.special, choice.pattern),
    "wordpiece": lambda texts, choice: train_wordpiece(texts, choice.vocabulary, choice.special, choice.lowercase),
}
"""Kinds that are trained on a sample; `char` is made from all characters of the corpus."""


def given_tokenizer(choice: Choice) -> TextTokenizer:
    """The tokenizer in `tokenizer.path`, with the special tokens that are to be added."""
    return with_special(read_tokenizer(Path(choice.path).expanduser()), choice.special)


def for_task(choice: Choice, task: str) -> Choice:
    """The choice, and the special tokens that a task needs and that it would lack."""
    there = {*choice.special}
    if choice.path:
        there.update(read_tokenizer(Path(choice.path).expanduser()).special_tokens)
    elif choice.kind == "wordpiece":
        there.update(BERT_TOKENS)
    changed: Choice = replace(cast(Any, choice), special=[*choice.special, *missing_tokens(task, there)])
    return changed


def tokenizer_settings(choice: Choice) -> dict[str, Any]:
    """Everything that the tokenizer depends on beside the text; what is as it always was is left out."""
    if choice.path:
        tokenizer = given_tokenizer(choice)
        content = json.dumps([tokenizer.library.to_str(), tokenizer.config], sort_keys=True).encode()
        return {"fingerprint": hashlib.sha256(content).hexdigest()}
    settings: dict[str, Any] = {"kind": choice.kind}
    if choice.kind != "char":
        settings |= {"vocabulary": choice.vocabulary, "sample_bytes": choice.sample_bytes}
    if choice.kind == "wordpiece":
        settings["lowercase"] = choice.lowercase
    if choice.kind in ("bpe", "unigram") and choice.pattern != "gpt2":
        settings["pattern"] = choice.pattern
    return settings | ({"special": choice.special} if choice.special else {})
