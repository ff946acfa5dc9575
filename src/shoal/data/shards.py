"""A corpus on disk: plain files of token ids, and a manifest that is written last.

    manifest.json                            what is here, with checksums; while it is missing there is no corpus
    train-00000.bin, train-00001.bin, …      token ids, little-endian uint16 (uint32 above 65,536 tokens), nothing else
    held_out-00000.bin, …                    the same for evaluation
    tokenizer.json, tokenizer_config.json    for `transformers.AutoTokenizer` and everything else that reads them

A split is the concatenation of its files: windows may cross from one file into the next, and where files are cut
changes nothing that a reader sees. Every document is followed by the end-of-text token.
"""

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import CorpusError, InputError
from shoal.core.files import read_json, sha256

VERSION = 1
MANIFEST = "manifest.json"
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")

# Open maps are kept, but each holds a file descriptor, of which a process may have 1,024.
OPEN_SHARDS = 256

SCANNED_AT_ONCE = 1 << 24


def token_dtype(vocabulary: int) -> str:
    """The smallest type, as numpy spells it, that holds every token id."""
    return "<u2" if vocabulary <= 1 << 16 else "<u4"


def shard_name(split: Split, number: int) -> str:
    """The name of a shard file."""
    return f"{split}-{number:05}.bin"


@dataclass(frozen=True)
class Shard:
    """One file of token ids. The checksum tells a shard from one that replaced it under the same name."""

    path: Path
    tokens: int
    sha256: str


@dataclass(frozen=True)
class TokenStream:
    """All token ids of one split, end to end."""

    shards: tuple[Shard, ...]
    dtype: str
    documents: int
    bytes: int
    vocabulary: int | None = None
    """What every token id must be below; None: not known."""

    @cached_property
    def starts(self) -> list[int]:
        """Where each shard starts in the stream, and, last, where the stream ends."""
        return [0, *accumulate(shard.tokens for shard in self.shards)]

    @property
    def tokens(self) -> int:
        """How many tokens the split has."""
        return self.starts[-1]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the stream's tokens, wherever they lie."""
        return hashlib.sha256(json.dumps([self.dtype, [shard.sha256 for shard in self.shards]]).encode()).hexdigest()

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Token ids `[starts, length]`, each row read from its start on; `IndexError` beyond the stream's end."""
        if len(starts) and (starts.min() < 0 or starts.max() + length > self.tokens):
            raise IndexError(f"windows of {length} tokens at {starts.min()} to {starts.max()} of {self.tokens} tokens")
        result = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(result, starts.tolist(), strict=True):
            self._fill(row, start)
        return self._known(result)

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The token ids at these places of the stream, each of which must lie in it."""
        numbers = np.searchsorted(self.starts, indices, side="right") - 1
        result = np.empty(len(indices), dtype=np.int64)
        for number in np.flatnonzero(np.bincount(numbers)):
            chosen = numbers == number
            result[chosen] = _open_shard(self.shards[number], self.dtype)[indices[chosen] - self.starts[number]]
        return self._known(result)

    def find(self, token: int) -> NDArray[np.int64]:
        """Where in the stream a token stands, read a bounded piece at a time: a second for some hundred million tokens."""
        found = [np.empty(0, dtype=np.int64)]
        for shard, start in zip(self.shards, self.starts, strict=False):
            for low in range(0, shard.tokens, SCANNED_AT_ONCE):
                piece = _open_shard(shard, self.dtype)[low : low + SCANNED_AT_ONCE]
                found.append(np.flatnonzero(piece == token) + (start + low))
        return np.concatenate(found)

    def _known(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens, if the vocabulary has them all."""
        if self.vocabulary is not None and tokens.max(initial=0) >= self.vocabulary:
            raise CorpusError(
                f"{self.shards[0].path.parent}: holds the token {tokens.max()}, its vocabulary has only {self.vocabulary}: "
                f"a shard was changed; shoal doctor --corpus {self.shards[0].path.parent} says which"
            )
        return tokens

    def _fill(self, row: NDArray[np.int64], start: int) -> None:
        index = bisect_right(self.starts, start) - 1
        filled = 0
        while filled < len(row):
            low = start + filled - self.starts[index]
            piece = _open_shard(self.shards[index], self.dtype)[low : low + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1


@lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(shard: Shard, dtype: str) -> NDArray[Any]:
    try:
        # A plain view: slicing a `memmap` object itself costs ten times as much.
        tokens = np.asarray(np.memmap(shard.path, dtype=dtype, mode="r"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"{shard.path}: can't be read ({error}); put it back, or prepare the corpus anew") from None
    if len(tokens) != shard.tokens:  # it would shift everything behind it
        raise CorpusError(
            f"{shard.path}: has {len(tokens):,} tokens instead of {shard.tokens:,}: changed since the corpus was opened; "
            f"delete {shard.path.parent} and prepare it anew"
        )
    return tokens


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus."""

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: Path, verify: bool = False) -> "Corpus":
        """The corpus in a folder; `CorpusError` unless all files have their sizes (`verify`: and checksums)."""
        manifest = directory / MANIFEST
        if not manifest.exists():
            state = "no corpus there" if not directory.exists() else "no finished corpus there"
            raise CorpusError(
                f"{directory}: {state} (no {MANIFEST}); make one: shoal prepare RECIPE, with the recipe that names it, or "
                f"of Python's own source: shoal prepare --data.directory {directory}"
            )
        try:
            corpus = cls(directory, read_json(manifest))
            if corpus.manifest["version"] != VERSION:
                raise CorpusError(
                    f"{manifest}: format {corpus.manifest['version']}, this Shoal reads {VERSION}; prepare it anew"
                )
            corpus._check(verify)
        except (KeyError, TypeError, InputError) as error:
            if isinstance(error, CorpusError):
                raise
            raise CorpusError(f"{manifest}: damaged ({error}); delete {directory} and prepare it anew") from None
        return corpus

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id."""
        return int(self.manifest["vocabulary"])

    @property
    def end_of_text(self) -> int:
        """The id of the token after every document."""
        return int(self.manifest["end_of_text"])

    @property
    def tokenizer_path(self) -> Path:
        """The corpus's `tokenizer.json`; `tokenizer_config.json` lies beside it."""
        return self.directory / "tokenizer.json"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what training sees: token files and tokenizer, not where or when they were made."""
        files = {split: [file["sha256"] for file in self.manifest["splits"][split]["files"]] for split in SPLITS}
        seen = [self.manifest["dtype"], self.end_of_text, self.manifest["tokenizer_sha256"], files]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def split(self, name: Split) -> TokenStream:
        """The tokens of a split."""
        split = self.manifest["splits"][name]
        shards = tuple(Shard(self.directory / file["name"], file["tokens"], file["sha256"]) for file in split["files"])
        return TokenStream(shards, cast(str, self.manifest["dtype"]), split["documents"], split["bytes"], self.vocabulary)

    def _check(self, verify: bool) -> None:
        item = np.dtype(self.manifest["dtype"]).itemsize
        remedy = f"delete {self.directory} and prepare it anew"
        for shard in (shard for split in SPLITS for shard in self.split(split).shards):
            size = shard.path.stat().st_size if shard.path.exists() else None
            if size != shard.tokens * item:
                found = "is missing" if size is None else f"has {size} bytes instead of {shard.tokens * item}"
                raise CorpusError(f"{shard.path}: {found}; {remedy}")
            if verify and sha256(shard.path) != shard.sha256:
                raise CorpusError(f"{shard.path}: damaged (its checksum differs from the manifest's); {remedy}")
        if not self.tokenizer_path.exists():
            raise CorpusError(f"{self.tokenizer_path}: is missing; {remedy}")
        if verify and sha256(self.tokenizer_path) != self.manifest["tokenizer_sha256"]:
            raise CorpusError(f"{self.tokenizer_path}: another tokenizer than the corpus was made with; {remedy}")
