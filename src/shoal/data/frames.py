"""What stands around a text, and between two, where a model reads them: `[CLS] A [SEP] B [SEP]`, `<s> A </s></s> B </s>`.

A tokenizer's own post-processor says it, in whatever way; here it is asked with a word, and the answer kept. So a text is
framed as `transformers` frames it, for every family. A tokenizer that says nothing gets a post-processor that does
(`framed`), and takes it along into the folder of the model that was trained with it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors


@dataclass(frozen=True)
class Frame:
    """The special tokens before the first text, between two, and after the last; `segments`: which kind of text each is.

    `kinds`: which kind of text each text is.
    """

    special: tuple[NDArray[np.int64], ...]
    segments: tuple[NDArray[np.int64], ...]
    kinds: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many special tokens there are."""
        return sum(map(len, self.special))


def ask_frame(library: Tokenizer, texts: int) -> Frame:
    """What a tokenizer puts around so many texts, one or two."""
    word = _word(library)
    encoding = library.encode(word) if texts == 1 else library.encode(word, word)
    special: list[list[int]] = [[] for _ in range(texts + 1)]
    segments: list[list[int]] = [[] for _ in range(texts + 1)]
    kinds = [0] * texts
    at = 0
    for token, kind, text in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
        if text is None:
            special[at].append(token)
            segments[at].append(kind)
        else:
            at, kinds[text] = text + 1, kind
    return Frame(_arrays(special), _arrays(segments), tuple(kinds))


def says_frame(library: Tokenizer) -> bool:
    """Whether a tokenizer puts anything around two texts, or between them."""
    return library.post_processor is not None and library.num_special_tokens_to_add(True) > 0


def around(begin: int, end: int, texts: int) -> Frame:
    """A beginning, and each text with its end: for a tokenizer that says nothing."""
    special = [[begin], *[[end]] * texts]
    segments = [[0], *[[number] for number in range(texts)]]
    return Frame(_arrays(special), _arrays(segments), tuple(range(texts)))


def with_frame(library: Tokenizer, begin: int, end: int, causal: bool) -> Tokenizer:
    """The tokenizer with a post-processor: of an encoder, `begin` A `end`, for two `begin` A `end` B `end`.

    A decoder reads a text by itself, of which the last token has seen all, and `end` between two: what `transformers`
    expects of a decoder that classifies, where the end-of-text is also what rows are padded with.
    """
    tokens = {library.id_to_token(number): number for number in (begin, end)}
    first, last = (library.id_to_token(number) for number in (begin, end))
    single, pair = ("$A", f"$A {last} $B") if causal else (f"{first} $A {last}", f"{first} $A {last} $B:1 {last}:1")
    template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(tokens.items()))
    copy = Tokenizer.from_str(library.to_str())
    before: Any = copy.post_processor
    copy.post_processor = template if before is None else processors.Sequence([before, template])
    return copy


def _word(library: Tokenizer) -> str:
    """A text of which the tokenizer makes ordinary tokens."""
    special = {number for number, token in library.get_added_tokens_decoder().items() if token.special}
    for number in range(library.get_vocab_size(with_added_tokens=True)):
        word = library.id_to_token(number)
        if word is None or number in special:
            continue
        found = library.encode(word, add_special_tokens=False).ids
        if found and not special.intersection(found):
            return str(word)
    raise ValueError("a tokenizer of special tokens alone")


def _arrays(lists: list[list[int]]) -> tuple[NDArray[np.int64], ...]:
    return tuple(np.array(numbers, dtype=np.int64) for numbers in lists)
