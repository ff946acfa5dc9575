"""Text to tokens and back: byte-level BPE, one token a character, or any `tokenizer.json`.

All three are `tokenizers.Tokenizer` objects kept as `tokenizer.json`, so every library that reads that file can use
them; `tokenizer_config.json` beside it makes `transformers.AutoTokenizer` load the folder. What is written in a text is
always text: `<|endoftext|>` inside a document becomes ordinary tokens, so no document can forge a document's end.

A character-level vocabulary has no "unknown" token: it is made from the whole corpus, and a character outside it is an
error that names the character. A model would only ever see an untrained embedding in its place.

Adding a kind of tokenizer is one `train_*` function here and its word in `recipe.Tokenizer.kind`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from shoal.core.errors import InputError
from shoal.core.files import read_json, write_json, write_text
from shoal.data.encoder import Encode, open_encoder

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>")
SLICE = 50_000


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with the token that ends a document, and the configuration that `transformers` reads."""

    library: Tokenizer
    end: str
    config: dict[str, Any]

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_of_text(self) -> int:
        """The id of the token that ends a document."""
        return cast(int, self.library.token_to_id(self.end))

    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids `[tokens]`, without any special token; `InputError` for a character outside the vocabulary."""
        return self._encode([text.encode()])[0].astype(np.int64)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of token ids; the end-of-text token is written out."""
        return str(self.library.decode([int(token) for token in ids], skip_special_tokens=False))

    @cached_property
    def _encode(self) -> Encode:
        return open_encoder(self.library.to_str())

    def write(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, for `AutoTokenizer.from_pretrained(folder)`."""
        write_text(folder / "tokenizer.json", self.library.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", self.config)


def read_tokenizer(path: Path) -> TextTokenizer:
    """A `tokenizer.json`, or a folder with one; raises `InputError` if it can't be used."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise InputError(f"{path}: no tokenizer.json there; give a tokenizer.json or a folder that holds one")
    try:
        library = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"{file}: not a tokenizer.json of the `tokenizers` library ({error})") from None
    library.no_truncation()
    library.no_padding()
    config_file = file.parent / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    end = _find_end(library, config, file)
    return TextTokenizer(library, end, config or _config(end))


def train_bpe(texts: Iterable[str], vocabulary: int) -> TextTokenizer:
    """Byte-level BPE as in GPT-2 (Radford et al. 2019) with exactly `vocabulary` tokens, `<|endoftext|>` included."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary <= len(alphabet):
        raise InputError(f"tokenizer.vocabulary is {vocabulary}; byte-level BPE needs {len(alphabet) + 1} at least")
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    tokenizer = TextTokenizer(library, END_OF_TEXT, _config(END_OF_TEXT))
    if tokenizer.vocabulary < vocabulary:
        raise InputError(
            f"the text yields only {tokenizer.vocabulary} tokens; "
            f"use --tokenizer.vocabulary {tokenizer.vocabulary} or less, or more text"
        )
    return tokenizer


def build_char(characters: Iterable[str]) -> TextTokenizer:
    """One token a character, in code point order, and `<|endoftext|>` after them."""
    vocabulary = {character: token for token, character in enumerate(sorted(set(characters)))}
    library = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return TextTokenizer(library, END_OF_TEXT, _config(END_OF_TEXT))


def sample_texts(texts: Iterable[str], limit: int) -> list[str]:
    """Slices of text, `limit` bytes at most, evenly spread over a stream of unknown length.

    Keeps every `stride`-th slice; whenever that is too much, drops every other kept one and doubles the stride.
    """
    kept: list[str] = []
    size, stride, number = 0, 1, 0
    for text in texts:
        for start in range(0, len(text), SLICE):
            if number % stride == 0:
                kept.append(text[start : start + SLICE])
                size += len(kept[-1].encode())
            number += 1
            while size > limit and len(kept) > 1:
                kept, stride = kept[::2], stride * 2
                size = sum(len(piece.encode()) for piece in kept)
    return kept


def _config(end: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
    }


def _find_end(library: Tokenizer, config: Any, file: Path) -> str:
    named = config.get("eos_token") if isinstance(config, dict) else None
    if isinstance(named, dict):
        named = named.get("content")
    for token in (named, *KNOWN_ENDS):
        if token and library.token_to_id(token) is not None:
            return str(token)
    raise InputError(
        f"{file}: has no token that ends a text (looked for {', '.join(KNOWN_ENDS)}); "
        f"name it in {file.parent / 'tokenizer_config.json'}: {json.dumps({'eos_token': '...'})}"
    )
