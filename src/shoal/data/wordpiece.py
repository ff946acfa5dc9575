"""WordPiece, BERT's tokenizer (Devlin et al. 2019, arXiv:1810.04805; Schuster and Nakajima 2012): words, then their parts.

Text is normalised first (control characters removed, lower case and no accents unless cased), cut at white space, signs and
Chinese characters; a word becomes the longest pieces of the vocabulary from left to right, those after the first written
with `##`. What the vocabulary can't spell is `[UNK]`.

The trade-off: whole words are known as such, as masking whole words wants it, and every BERT reads the files; but the text
doesn't come back exactly, so bits per byte flatter such a model. Characters are kept up to half of the vocabulary, by
frequency: each may be needed twice, with `##` and without.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from shoal.core.errors import InputError
from shoal.data.special_tokens import BERT_MASK, BERT_TOKENS, CLASSIFICATION, PADDING, SEPARATOR, UNKNOWN
from shoal.data.tokenizer import TextTokenizer, special_list, whole


def train_wordpiece(
    texts: Iterable[str], vocabulary: int, special: Sequence[str] = (), lowercase: bool = True
) -> TextTokenizer:
    """WordPiece with exactly `vocabulary` tokens, BERT's five special ones first; `[SEP]` ends a document."""
    tokens = special_list([token for token in special if token not in BERT_TOKENS], *BERT_TOKENS)
    room = (vocabulary - len(tokens)) // 2
    if room < 1:
        raise InputError(f"tokenizer.vocabulary is {vocabulary}; WordPiece needs {len(tokens) + 2} at least")
    library = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    texts = list(texts)
    beginning, continuing = _characters(library, texts, room)
    # the trainer finds characters in an order that differs from run to run, and pairs them by that; but not special ones
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*tokens, *continuing], initial_alphabet=beginning,
        limit_alphabet=len(beginning), show_progress=False,
    )  # fmt: skip
    library.train_from_iterator(texts, trainer)
    library = _without_special(library, set(continuing))
    library.post_processor = processors.TemplateProcessing(
        single=f"{CLASSIFICATION} $A {SEPARATOR}",
        pair=f"{CLASSIFICATION} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(token, library.token_to_id(token)) for token in (CLASSIFICATION, SEPARATOR)],
    )
    return whole(TextTokenizer(library, SEPARATOR, _bert_config(lowercase)), vocabulary)


def _characters(library: Tokenizer, texts: Iterable[str], most: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, and those of them that continue a word, as `##c`, in a fixed order."""
    counts: Counter[str] = Counter()
    chunks: set[str] = set()
    for text in texts:
        normal = library.normalizer.normalize_str(text)
        counts.update(normal)
        chunks.update(normal.split())
    ranked = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    kept = [character for _, character in ranked[:most]]
    words = library.pre_tokenizer.pre_tokenize_str(" ".join(chunks))
    inside = {character for word, _ in words for character in word[1:]}
    return kept, [f"##{character}" for character in kept if character in inside]


def _without_special(library: Tokenizer, tokens: set[str]) -> Tokenizer:
    """The tokenizer in which these tokens are ordinary ones."""
    tree = json.loads(library.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(tree))


def _bert_config(lowercase: bool) -> dict[str, Any]:
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "pad_token": PADDING,
        "unk_token": UNKNOWN,
        "cls_token": CLASSIFICATION,
        "sep_token": SEPARATOR,
        "mask_token": BERT_MASK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
    }
