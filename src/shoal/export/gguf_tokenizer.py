"""A tokenizer in GGUF's metadata, so that llama.cpp makes the same tokens of a text as Shoal.

llama.cpp has byte-level BPE with a table of ways to cut text into words, each by a name. Its names for ours:

    gpt2, of GPT-2              gpt-2
    llama3                      smaug-bpe   merges alone make a token, as in ours
    the same, ignore_merges     llama-bpe   a word of the vocabulary is one token at once, as in Llama 3's own
    Qwen2's and Qwen3's         qwen2       their NFC is left out: text in another form gets other tokens there

A vocabulary of characters is written as byte-level BPE, too: a character is spelled as bytes, and merges of its own put them
together. Unlike Shoal, which refuses a character that it doesn't know, llama.cpp leaves it out.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers

from shoal.core.errors import InputError
from shoal.core.extras import library
from shoal.data.frames import ask_frame
from shoal.data.tokenizer import TextTokenizer, byte_level
from shoal.export.subject import Subject

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNREACHED = "\x01 \x01"
"""A merge of what no text has, as bytes are spelled by letters: lists in GGUF must not be empty."""

BPE_OPTIONS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


def add_tokenizer(writer: Any, subject: Subject) -> None:
    """Put in tokens, their types, merges, and which are special; `InputError` for what llama.cpp has no like of."""
    types = library("gguf", "export").TokenType
    tokenizer = subject.tokenizer
    words, spelled, merges = spelling(tokenizer)
    special = {*tokenizer.special_tokens.values()}
    added = {*tokenizer.library.get_added_tokens_decoder()} - special
    tokens, kinds = [], []
    for number in range(tokenizer.vocabulary):
        tokens.append(spelled.get(number, f"[unused {number}]"))
        kind = types.CONTROL if number in special else types.USER_DEFINED if number in added else types.NORMAL
        kinds.append(kind if number in spelled else types.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges or [UNREACHED])
    _add_special(writer, subject)


def spelling(tokenizer: TextTokenizer) -> tuple[str, dict[int, str], list[str]]:
    """(llama.cpp's name of how text is cut into words, tokens by number, merges); `InputError` where it has none."""
    tree = json.loads(tokenizer.library.to_str())
    spelled = {number: token for token, number in tokenizer.library.get_vocab(with_added_tokens=True).items()}
    if tree["model"]["type"] == "WordLevel" and all(len(token) == 1 for token in tree["model"]["vocab"]):
        added = tokenizer.library.get_added_tokens_decoder()
        spelled = {number: token if number in added else _as_bytes(token) for number, token in spelled.items()}
        return "gpt-2", spelled, _character_merges(spelled[number] for number in spelled.keys() - added.keys())
    words = _words(tree)
    if tree["model"]["type"] != "BPE" or any(tree["model"].get(option) for option in BPE_OPTIONS) or words is None:
        raise InputError(
            f"llama.cpp has no like of the model's tokenizer ({tree['model']['type']}): it takes byte-level BPE whose words "
            "are GPT-2's, Llama 3's or Qwen2's, and characters; export to onnx, torch or hf instead"
        )
    return words, spelled, [pair if isinstance(pair, str) else " ".join(pair) for pair in tree["model"]["merges"]]


def _words(tree: Mapping[str, Any]) -> str | None:
    whole = bool(tree["model"].get("ignore_merges"))
    qwen2 = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    known = [
        (byte_level("gpt2"), False, None, "gpt-2"), (byte_level("llama3"), False, None, "smaug-bpe"),
        (byte_level("llama3"), True, None, "llama-bpe"), (qwen2, False, {"type": "NFC"}, "qwen2"),
        (qwen2, False, None, "qwen2"),
    ]  # fmt: skip
    for step, ignores, normalizer, name in known:
        if (ignores, normalizer) == (whole, tree["normalizer"]) and _plain(tree["pre_tokenizer"]) == _plain(_tree(step)):
            return name
    return None


def _tree(step: Any) -> Any:
    return json.loads(step.__getstate__())


def _plain(step: Any) -> Any:
    """A step of cutting, without what changes no token."""
    if isinstance(step, dict):
        return {key: _plain(value) for key, value in step.items() if key != "trim_offsets"}
    return [_plain(one) for one in step] if isinstance(step, list) else step


def _as_bytes(text: str) -> str:
    """Each byte as the letter that stands for it in byte-level vocabularies."""
    return "".join(
        piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    )


def _character_merges(characters: Any) -> list[str]:
    """Pairs that put the bytes of each character together, from the left: never those of two characters."""
    pairs = {(word[:end], word[end]): end for word in characters for end in range(1, len(word))}
    return [" ".join(pair) for pair in sorted(pairs, key=lambda pair: (pairs[pair], pair))]


def _add_special(writer: Any, subject: Subject) -> None:
    tokenizer = subject.tokenizer
    begin = subject.said.get("bos_token_id")
    writer.add_bos_token_id(begin if isinstance(begin, int) else tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    for end in subject.ends:
        if end != tokenizer.end_of_text:
            writer.add_eot_token_id(end)
    frame = ask_frame(tokenizer.library, 1)
    writer.add_add_bos_token(len(frame.special[0]) > 0)
    writer.add_add_eos_token(len(frame.special[1]) > 0)
    template = tokenizer.config.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(_without_generation(template))


def _without_generation(template: str) -> str:
    """The same, without the marks around what a model learns to say, which other readers of Jinja don't know."""
    opened = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", opened)
