"""From documents to units of work: what is held out, and how much text a worker gets at a time.

A unit is about `shard_megabytes` of text, and becomes one shard file a split. Units depend on the documents, their
order and the settings alone, so a unit whose hash is known need never be tokenized again.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, Protocol, TypeVar

from shoal.core.errors import InputError
from shoal.data.readers import Document
from shoal.data.shards import Split

TAIL_CHARACTERS = 500_000_000


class HasText(Protocol):
    """What can be grouped by the length of its text."""

    @property
    def text(self) -> str | bytes:
        """The text."""
        ...


Item = TypeVar("Item", bound=HasText)


class Piece(NamedTuple):
    """Text (UTF-8) of one document for one split; `ends` says that the document's text in this split ends here."""

    text: bytes
    split: Split
    ends: bool


class Unit(NamedTuple):
    """Pieces that are tokenized in one go, and a hash of them and of the tokenizer."""

    number: int
    pieces: list[Piece]
    fingerprint: str

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of text."""
        return sum(len(piece.text) for piece in self.pieces)


def split_documents(documents: Iterable[Document], share: float, by: Literal["document", "tail"]) -> Iterator[Piece]:
    """Decide for all text which split it belongs to."""
    return _split_by_hash(documents, share) if by == "document" else _split_tails(documents, share)


def pack_units(pieces: Iterable[Piece], size: int, tokenizer: str) -> Iterator[Unit]:
    """Group pieces until they have `size` bytes; pieces are not cut. `tokenizer` is a hash of it."""
    for number, group in enumerate(grouped(pieces, size)):
        yield Unit(number, group, _fingerprint(group, tokenizer))


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in their order, in groups that have `size` bytes or characters of text or more, but for the last."""
    group, held = list[Item](), 0
    for item in items:
        group.append(item)
        held += len(item.text)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def _fingerprint(pieces: list[Piece], tokenizer: str) -> str:
    digest = hashlib.sha256(tokenizer.encode())
    for piece in pieces:
        digest.update(f"\0{piece.split}:{piece.ends}:{len(piece.text)}:".encode())
        digest.update(piece.text)
    return digest.hexdigest()


def _split_by_hash(documents: Iterable[Document], share: float) -> Iterator[Piece]:
    """Whole documents, by a hash of their text: equal documents never lie in both splits, whatever else is added.

    Of a document that comes in pieces, the first one decides.
    """
    split: Split | None = None
    for document in documents:
        text = document.text.encode()
        if split is None and not text:
            continue
        if split is None:
            draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
            split = "held_out" if draw < share * 2**64 else "train"
        yield Piece(text, split, not document.continues)
        if not document.continues:
            split = None


def _split_tails(documents: Iterable[Document], share: float) -> Iterator[Piece]:
    """`text[: int(len(text) * (1 - share))]` trains, as nanoGPT splits; the rest is held out.

    The length of a document that comes in pieces is not known before its end, but what lies before `1 - share` of the
    text so far certainly trains: only the last `share` of a document waits in memory.
    """
    waiting: deque[str] = deque()
    given = seen = 0

    def take(end: int) -> Iterator[str]:
        nonlocal given
        while waiting and given < end:
            text = waiting.popleft()
            if len(text) > end - given:
                waiting.appendleft(text[end - given :])
                text = text[: end - given]
            given += len(text)
            yield text

    for document in documents:
        waiting.append(document.text)
        seen += len(document.text)
        trained = int(seen * (1 - share))
        yield from (Piece(text.encode(), "train", False) for text in take(trained))
        if seen - given > TAIL_CHARACTERS:
            raise InputError(
                f"{document.name}: its tail is above {TAIL_CHARACTERS:,} characters; "
                "cut the text into several documents, hold out less, or use --data.held_out_by document"
            )
        if not document.continues:
            if given:
                yield Piece(b"", "train", True)
            if seen > given:
                yield from (Piece(text.encode(), "held_out", False) for text in take(seen))
                yield Piece(b"", "held_out", True)
            given = seen = 0
