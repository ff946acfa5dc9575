"""Text to tokens and back: byte-level BPE, WordPiece, Unigram, one token a character, or any `tokenizer.json`.

All are `tokenizers.Tokenizer` objects kept as `tokenizer.json`, so every library that reads that file can use
them; `tokenizer_config.json` beside it makes `transformers.AutoTokenizer` load the folder. What is written in a text is
always text: `<|endoftext|>` inside a document becomes ordinary tokens, so no document can forge a document's end.

A character-level vocabulary has no "unknown" token: it is made from the whole corpus, and a character outside it is an
error that names the character. A model would only ever see an untrained embedding in its place.

WordPiece and Unigram have a file each; `tokenizer_choice.py` has the table of kinds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from shoal.core.errors import InputError
from shoal.core.files import read_json, write_json, write_text
from shoal.data.byte_level import read_bytes
from shoal.data.encoder import LLAMA3_PATTERN, Encode, open_encoder
from shoal.data.frames import Frame, around, ask_frame, says_frame
from shoal.data.special_tokens import END_OF_TEXT, SEPARATOR, config_keys, spellings

KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", SEPARATOR)
SLICE = 50_000

Pattern = Literal["gpt2", "llama3"]


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer with the token that ends a document, and the configuration that `transformers` reads."""

    library: Tokenizer
    end: str
    config: dict[str, Any]

    @cached_property
    def vocabulary(self) -> int:
        """One more than the largest token id."""
        return max(self.library.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_of_text(self) -> int:
        """The id of the token that ends a document."""
        return cast(int, self.library.token_to_id(self.end))

    @property
    def unknown(self) -> int | None:
        """The id of the token for what the vocabulary can't spell; None where it can spell everything."""
        token = getattr(self.library.model, "unk_token", None)
        return self.library.token_to_id(token) if token else None

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The tokens that no text yields, and their ids."""
        added = self.library.get_added_tokens_decoder().items()
        return {token.content: number for number, token in added if token.special}

    def special(self, name: str) -> int:
        """The id of a special token, by its spelling or by what it is for: `mask`, or `begin` or `separator` (else the
        end-of-text token).

        Raises `InputError` that says how to add it.
        """
        named = (token_text(self.config.get(key)) for key in config_keys(name))
        for token in (*named, *spellings(name)):
            if token in self.special_tokens:
                return self.special_tokens[token]
        if name in ("begin", "separator"):
            return self.end_of_text
        wanted = spellings(name)[0]
        raise InputError(
            f"the tokenizer has no special token {wanted}; prepare the corpus anew: shoal prepare adds what the recipe's "
            f"task needs, and --tokenizer.special '{json.dumps([wanted])}' anything else"
        )

    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids `[tokens]`, without any special token; `InputError` for a character outside the vocabulary."""
        return self._encode([text.encode()])[0].astype(np.int64)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of token ids; the end-of-text token is written out."""
        return str(self.library.decode([int(token) for token in ids], skip_special_tokens=False))

    @cached_property
    def concatenates(self) -> bool:
        """Whether tokens are bytes (`bytes_of`), whatever stands beside them."""
        return isinstance(self.library.decoder, decoders.ByteLevel)

    def bytes_of(self, token: int) -> bytes:
        """Of a tokenizer that `concatenates`: what the token adds to a text."""
        if (known := self._bytes.get(token)) is None:
            written = self.library.id_to_token(token) or ""
            raw = read_bytes(written)
            known = self._bytes[token] = written.encode() if raw is None else raw
        return known

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        return {}

    @cached_property
    def _encode(self) -> Encode:
        return open_encoder(self.library.to_str())

    @cached_property
    def frames(self) -> dict[int, Frame]:
        """What stands around one text, and around two: as its post-processor says, else `begin`, text, end, text, end."""
        if says_frame(self.library):
            return {texts: ask_frame(self.library, texts) for texts in (1, 2)}
        return {texts: around(self.special("begin"), self.end_of_text, texts) for texts in (1, 2)}

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
    config = config if isinstance(config, dict) else {}
    template_file = file.parent / "chat_template.jinja"
    if template_file.exists():
        config["chat_template"] = template_file.read_text(encoding="utf-8", errors="replace")
    end = _find_end(library, config, file)
    special = [token.content for token in library.get_added_tokens_decoder().values() if token.special]
    return TextTokenizer(library, end, config or make_config(end, special))


def train_bpe(
    texts: Iterable[str], vocabulary: int, special: Sequence[str] = (), pattern: Pattern = "gpt2"
) -> TextTokenizer:
    """Byte-level BPE as in GPT-2 (Radford et al. 2019) with exactly `vocabulary` tokens, `<|endoftext|>` included.

    Tokens never cross the borders of what `pattern` takes for a word.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = special_list(special, END_OF_TEXT)
    if vocabulary < len(alphabet) + len(tokens):
        raise InputError(
            f"tokenizer.vocabulary is {vocabulary}; byte-level BPE needs {len(alphabet) + len(tokens)} at least"
        )
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = byte_level(pattern)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    return whole(TextTokenizer(library, END_OF_TEXT, make_config(END_OF_TEXT, tokens)), vocabulary)


def byte_level(pattern: Pattern) -> Any:
    """Bytes as letters, after cutting text into words, GPT-2's way or Llama 3's."""
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def whole(tokenizer: TextTokenizer, vocabulary: int) -> TextTokenizer:
    """The tokenizer, if training found as many tokens as were asked for."""
    if tokenizer.vocabulary < vocabulary:
        raise InputError(
            f"the text yields only {tokenizer.vocabulary} tokens; "
            f"use --tokenizer.vocabulary {tokenizer.vocabulary} or less, or more text"
        )
    return tokenizer


def special_list(special: Sequence[str], *own: str) -> list[str]:
    """A kind's own special tokens and those asked for; `InputError` for one that words of a text could add up to."""
    for token in special:
        bracketed = len(token) > 2 and not (token[0].isalnum() or token[-1].isalnum()) and token.isprintable()
        if not bracketed or " " in token or not any(map(str.isalnum, token)):
            raise InputError(
                f"tokenizer.special: {token!r} could also be written in a text; put the name between signs, as in '<|name|>'"
            )
    return list(dict.fromkeys((*own, *special)))


def with_special(tokenizer: TextTokenizer, special: Sequence[str]) -> TextTokenizer:
    """The tokenizer with further special tokens, whose ids follow its own; those that it has stay where they are."""
    new = [token for token in special_list(special) if token not in tokenizer.special_tokens]
    if not new:
        return tokenizer
    tree = json.loads(tokenizer.library.to_str())
    added = {token["content"]: token for token in tree["added_tokens"]}
    for token in added.keys() & {*new}:  # as Qwen's `<|fim_prefix|>`, which a text could yield
        added[token]["special"] = True
    library = Tokenizer.from_str(json.dumps(tree))
    for token in (token for token in new if token not in added):
        if library.token_to_id(token) is not None:
            raise InputError(f"tokenizer.special: {token!r} is an ordinary token of the tokenizer; choose another name")
        library.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return TextTokenizer(library, tokenizer.end, {**special_config(new), **tokenizer.config})


def difference(first: TextTokenizer, second: TextTokenizer) -> str:
    """What tells two tokenizers apart, in words; empty where every token of the first is the same one in the second."""
    mine, theirs = (tokenizer.library.get_vocab(with_added_tokens=True) for tokenizer in (first, second))
    differing = sorted(number for token, number in mine.items() if theirs.get(token) != number)
    if not differing:
        return ""
    names = [tokenizer.library.id_to_token(differing[0]) for tokenizer in (first, second)]
    return (
        f"token {differing[0]} is {names[0]!r} in one and {names[1]!r} in the other; "
        f"{len(differing):,} of {len(mine):,} differ"
    )


def build_char(characters: Iterable[str], special: Sequence[str] = ()) -> TextTokenizer:
    """One token a character, in code point order, and `<|endoftext|>` and other special tokens after them."""
    vocabulary = {character: token for token, character in enumerate(sorted(set(characters)))}
    tokens = special_list(special, END_OF_TEXT)
    library = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return TextTokenizer(library, END_OF_TEXT, make_config(END_OF_TEXT, tokens))


def sample_texts(texts: Iterable[str], limit: int) -> list[str]:
    """Slices of text, `limit` bytes at most, evenly spread over a stream of unknown length."""
    sample = Sample(limit)
    for text in texts:
        sample.add(text)
    return sample.texts


class Sample:
    """Slices of the text that is added, `limit` bytes at most, evenly spread.

    Keeps every `stride`-th slice; whenever that is too much, drops every other kept one and doubles the stride.
    """

    def __init__(self, limit: int) -> None:
        self.texts: list[str] = []
        self._limit, self._size, self._stride, self._number = limit, 0, 1, 0

    def add(self, text: str) -> None:
        """What comes next."""
        for start in range(0, len(text), SLICE):
            if self._number % self._stride == 0:
                self.texts.append(text[start : start + SLICE])
                self._size += len(self.texts[-1].encode())
            self._number += 1
            while self._size > self._limit and len(self.texts) > 1:
                self.texts, self._stride = self.texts[::2], self._stride * 2
                self._size = sum(len(piece.encode()) for piece in self.texts)


def make_config(end: str, special: Sequence[str] = ()) -> dict[str, Any]:
    """What `transformers` reads beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        **special_config(special),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
    }


def special_config(special: Sequence[str]) -> dict[str, str]:
    """The mask token, where there is one, under the name that `transformers` looks for."""
    mask = next((token for token in special if token in spellings("mask")), None)
    return {"mask_token": mask} if mask else {}


def token_text(named: Any) -> Any:
    """The text of a token in `tokenizer_config.json`, where it is a text, or an object with one."""
    return named.get("content") if isinstance(named, dict) else named


def _find_end(library: Tokenizer, config: dict[str, Any], file: Path) -> str:
    named = token_text(config.get("eos_token"))
    for token in (named, *KNOWN_ENDS):
        if token and library.token_to_id(token) is not None:
            return str(token)
    raise InputError(
        f"{file}: has no token that ends a text (looked for {', '.join(KNOWN_ENDS)}); "
        f"name it in {file.parent / 'tokenizer_config.json'}: {json.dumps({'eos_token': '...'})}"
    )
