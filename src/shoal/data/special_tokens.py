"""Tokens that no text yields: what tasks need them for, and under which names tokenizers have them.

A task asks for a token by what it is for (`mask`, `begin`, `separator`) or by its usual spelling (`<|fim_prefix|>`), and
gets whichever the tokenizer at hand has: BERT's `[MASK]`, RoBERTa's `<mask>`, or ours. `shoal prepare` adds what the
recipe's task needs and the tokenizer would lack, so a corpus fits its task without further keys; `tokenizer.special` adds
any others.

Fill-in-the-middle has the three tokens of Bavarian et al. 2022 (arXiv:2207.14255), span corruption the 100 sentinels of
T5 (Raffel et al. 2020, arXiv:1910.10683).
"""

from collections.abc import Collection

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
BETWEEN = "<|separator|>"
FILL_IN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
SENTINELS = tuple(f"<|extra_{number}|>" for number in range(100))
PADDING, UNKNOWN, CLASSIFICATION, SEPARATOR, BERT_MASK = BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

TASK_TOKENS: dict[str, tuple[str, ...]] = {
    "masked": ("mask",), "infill": (*FILL_IN, *SENTINELS), "translate": ("separator",),
}  # fmt: skip
"""What each task needs beside the token that ends a document; other tasks need nothing."""

_ROLES = {
    "mask": (MASK, BERT_MASK, "<mask>"), "begin": (CLASSIFICATION, "<s>", "<|startoftext|>"),
    "separator": (BETWEEN, SEPARATOR),
}  # fmt: skip
_CONFIG_KEYS = {"mask": ("mask_token",), "begin": ("cls_token", "bos_token"), "separator": ("sep_token",)}


def spellings(name: str) -> tuple[str, ...]:
    """Under which names tokenizers have a special token, Shoal's own first."""
    if name in _ROLES:
        return _ROLES[name]
    if name in FILL_IN:  # StarCoder's
        return name, name.replace("|", "")
    if name in SENTINELS:  # T5's
        return name, name.replace("|", "").replace("extra_", "extra_id_")
    return (name,)


def config_keys(name: str) -> tuple[str, ...]:
    """Where `tokenizer_config.json` may say which token has a role."""
    return _CONFIG_KEYS.get(name, ())


def missing_tokens(task: str, there: Collection[str]) -> list[str]:
    """Tokens to add to those that are there, for a task."""
    needed = (spellings(name) for name in TASK_TOKENS.get(task, ()))
    return [names[0] for names in needed if not any(name in there for name in names)]
