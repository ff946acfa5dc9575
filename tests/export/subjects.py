"""Small random models to export, of every family and with every head, and tokenizers of every kind."""

from dataclasses import replace
from functools import cache
from typing import Any

from shoal.data.tokenizer import TextTokenizer, build_char, train_bpe
from shoal.export.subject import Subject
from shoal.models.config import TransformerConfig
from tests.conftest import fixed_text
from tests.models.shapes import BERT, GPT2, LLAMA, MODERNBERT, QWEN3, random_model

BODY: dict[str, Any] = {"transform": False, "head_bias": False}
CLASSIFIER = replace(BERT, **BODY, head="sequence", outputs=3)
TAGGER = replace(BERT, **BODY, pooler=False, head="token", outputs=4)

SHAPES: dict[str, TransformerConfig] = {
    "gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3, "bert": BERT, "modernbert": MODERNBERT,
    "body": replace(BERT, **BODY), "classifier": CLASSIFIER, "tagger": TAGGER,
    "answerer": replace(TAGGER, head="span", outputs=2),
    "by the mean": replace(MODERNBERT, head="sequence", outputs=3, pooling="mean", head_bias=False),
    "by attention": replace(MODERNBERT, **BODY, head="sequence", outputs=3, pooling="attention"),
    "by the last": replace(LLAMA, tied=True, head="sequence", outputs=3, pooling="last"),
}  # fmt: skip


@cache
def tokenizers() -> dict[str, TextTokenizer]:
    """By how they cut text into words, or by kind."""
    text = fixed_text(200) + "It's 12 o'clock; we're 1,234 fish."
    return {
        "gpt-2": train_bpe([text], 300, ["<|mask|>"]), "smaug-bpe": train_bpe([text], 300, pattern="llama3"),
        "char": build_char(f"{text}\n  déjà 一群🐟"),
    }  # fmt: skip


def subject(shape: str, words: str = "gpt-2", beyond: int = 5, **changes: Any) -> Subject:
    """A random model with `beyond` more words than its tokenizer."""
    tokenizer = tokenizers()[words]
    config = replace(SHAPES[shape], vocabulary=tokenizer.vocabulary + beyond, **changes)
    return Subject(shape.replace(" ", "-"), random_model(config), tokenizer, {"eos_token_id": tokenizer.end_of_text})
