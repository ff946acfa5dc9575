"""The fast road from text to token ids, always to the same ids as `tokenizers` gives.

`tokenizers` is the reference and takes any tokenizer.json, at 1.8 MB/s a core on Python source. Two kinds have a
faster road: characters are one table look-up (numpy), and byte-level BPE with GPT-2's or Llama 3's pattern goes
through `gigatoken`, which remembers the ids of every word (85 MB/s a core). It is young, so it is kept on a short
lead: only exactly that kind of tokenizer, only text on which the two libraries agree (each follows a Unicode version
of its own), its cache thrown away now and then, as it has no bound; and where it is not installed the reference does
the work.
"""

import json
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shoal.core.errors import InputError

try:
    import gigatoken
except ImportError:  # no wheel for this machine
    gigatoken = None  # type: ignore[assignment, unused-ignore]

Encode = Callable[[Sequence[bytes]], list[NDArray[np.uint32]]]

CODE_POINTS = 0x110000
PAGE = 0x100
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CACHE_BYTES = 64_000_000


def open_encoder(tokenizer_json: str) -> Encode:
    """UTF-8 texts to ids `[tokens]` each, without special tokens; what looks like one in a text is text."""
    tree = json.loads(tokenizer_json)
    if _is_char(tree):
        return _table_encoder(tree["model"]["vocab"])
    if gigatoken is not None and _is_plain_bpe(tree):
        return _Fast(tokenizer_json)
    return reference_encoder(tokenizer_json)


def reference_encoder(tokenizer_json: str) -> Encode:
    """Through `tokenizers`: any tokenizer."""
    library = Tokenizer.from_str(tokenizer_json)
    library.encode_special_tokens = True
    library.no_truncation()
    library.no_padding()

    def encode(text: bytes) -> NDArray[np.uint32]:
        # One text a call: an encoding takes some hundred bytes a token until its ids are taken out.
        encoding = library.encode_batch_fast([text.decode()], add_special_tokens=False)[0]
        return np.array(encoding.ids, dtype=np.uint32)

    return lambda texts: [encode(text) for text in texts]


class _Fast:
    """Byte-level BPE through `gigatoken` wherever it is sure to agree with the reference.

    As many encoders as threads encode at a time: `gigatoken`'s can't be used by two at once ("Already borrowed").
    """

    def __init__(self, tokenizer_json: str) -> None:
        self.reference = reference_encoder(tokenizer_json)
        tree = json.loads(tokenizer_json)
        self.tokenizer_json = json.dumps({**tree, "added_tokens": []})
        self.idle: deque[tuple[gigatoken.Tokenizer, int]] = deque()
        """Encoders that nobody uses, each with how many bytes it may yet read."""

    def __call__(self, texts: Sequence[bytes]) -> list[NDArray[np.uint32]]:
        if _is_familiar(b"".join(texts)):
            return [self._encode(text) for text in texts]
        return [self._encode(text) if _is_familiar(text) else self.reference([text])[0] for text in texts]

    def _encode(self, text: bytes) -> NDArray[np.uint32]:
        try:
            fast, room = self.idle.pop()
        except IndexError:
            fast, room = gigatoken.Tokenizer.from_json(self.tokenizer_json), CACHE_BYTES
        ids = fast.encode(text)
        if room > len(text):
            self.idle.append((fast, room - len(text)))
        return ids


def _table_encoder(vocabulary: dict[str, int]) -> Encode:
    missing = np.uint32(0xFFFFFFFF)
    table = np.full(CODE_POINTS, missing, dtype=np.uint32)
    for character, token in vocabulary.items():
        table[ord(character)] = token

    def encode(text: bytes) -> NDArray[np.uint32]:
        points = _code_points(text.decode())
        ids = table[points]
        unknown = np.flatnonzero(ids == missing)
        if len(unknown):
            character = chr(points[unknown[0]])
            raise InputError(
                f"the character {character!r} (U+{ord(character):04X}) is not in the character vocabulary, "
                f"which has only those of the corpus it was made from"
            )
        return ids

    return lambda texts: [encode(text) for text in texts]


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _is_familiar(text: bytes) -> bool:
    """Whether this Python's Unicode has all characters; newer ones are letters to one library and not to another."""
    if text.isascii():
        return True
    points = _code_points(text.decode())
    new = _unassigned()[points]
    if not new.any():
        return True
    # once a page, and no more than a text needs: all take 80 ms, for which a server would stand still
    for page in np.unique(points[new] // PAGE).tolist():
        _look_up(page)
    return not _unassigned()[points].any()


@lru_cache(maxsize=1)
def _unassigned() -> NDArray[np.bool_]:
    """Of each code point whether it is no character; all of a page that has not been looked up."""
    return np.ones(CODE_POINTS, bool)


@lru_cache(maxsize=CODE_POINTS // PAGE)
def _look_up(page: int) -> None:
    points = range(page * PAGE, (page + 1) * PAGE)
    _unassigned()[points.start : points.stop] = [unicodedata.category(chr(point)) == "Cn" for point in points]


def _is_char(tree: dict[str, Any]) -> bool:
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return (
        tree["model"]["type"] == "WordLevel"
        and tree["normalizer"] is None
        and tree["pre_tokenizer"] == split
        and all(len(token) == 1 for token in tree["model"]["vocab"])
        and all(token["special"] for token in tree["added_tokens"])
    )


def _is_plain_bpe(tree: dict[str, Any]) -> bool:
    model = tree["model"]
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return (
        model["type"] == "BPE"
        and not any(model.get(option) for option in options)
        and tree["normalizer"] is None
        and (_is_byte_level(tree["pre_tokenizer"], pattern=True) or _is_llama3_split(tree["pre_tokenizer"]))
        and all(token["special"] for token in tree["added_tokens"])
    )


def _is_byte_level(step: dict[str, Any] | None, pattern: bool) -> bool:
    """Bytes as letters, after splitting by GPT-2's pattern, or not splitting."""
    step = step or {}
    return (
        step.get("type") == "ByteLevel" and step.get("use_regex", True) is pattern and not step.get("add_prefix_space", True)
    )


def _is_llama3_split(step: dict[str, Any] | None) -> bool:
    steps = (step or {}).get("pretokenizers", [])
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    return len(steps) == 2 and steps[0] == split and _is_byte_level(steps[1], pattern=False)
