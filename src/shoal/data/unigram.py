"""Unigram (Kudo 2018, arXiv:1804.10959): of all ways to spell a word with the vocabulary, the likeliest.

Training begins with many frequent substrings, estimates how likely each is (EM), and drops again and again those that the
text would miss least, where BPE only ever adds. Words are spelled as bytes, a space as the first letter of its word (`Ġ`,
SentencePiece's `▁`), and all 256 bytes are in the vocabulary: nothing is unknown, and every text comes back exactly, also
one with a `▁` or a `<0x0A>` in it, which SentencePiece's own way of falling back on bytes would change.

Threads sum in no fixed order, so likelihoods differ from run to run by 1e-14, and bytes that the text hasn't are ordered by
chance; both are settled afterwards, as a corpus must come out the same again.
"""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shoal.core.errors import InputError
from shoal.data.special_tokens import END_OF_TEXT
from shoal.data.tokenizer import Pattern, TextTokenizer, byte_level, make_config, special_list, whole

LONGEST = 24
"""Bytes of a token at most: 8 Chinese characters."""
DIGITS = 6
STEP = 1e-4


def train_unigram(
    texts: Iterable[str], vocabulary: int, special: Sequence[str] = (), pattern: Pattern = "gpt2"
) -> TextTokenizer:
    """Byte-level Unigram with exactly `vocabulary` tokens, `<|endoftext|>` included."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = special_list(special, END_OF_TEXT)
    if vocabulary < len(alphabet) + len(tokens):
        raise InputError(f"tokenizer.vocabulary is {vocabulary}; Unigram needs {len(alphabet) + len(tokens)} at least")
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = byte_level(pattern)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=tokens, initial_alphabet=alphabet, max_piece_length=LONGEST,
        show_progress=False,
    )  # fmt: skip
    library.train_from_iterator(texts, trainer)
    library = _settled(library, len(tokens))
    return whole(TextTokenizer(library, END_OF_TEXT, make_config(END_OF_TEXT, tokens)), vocabulary)


def _settled(library: Tokenizer, special: int) -> Tokenizer:
    """The tokenizer with rounded likelihoods, and with bytes that the text hasn't in their order."""
    tree = json.loads(library.to_str())
    vocabulary = tree["model"]["vocab"]
    learnt = {token: round(score, DIGITS) for token, score in vocabulary[special:]}
    least = min(learnt.values())
    # the trainer gives those bytes the least likelihood, and a ten-thousandth more from one to the next
    unseen = sorted(token for token, score in learnt.items() if len(token) == 1 and score <= least + 256 * STEP)
    learnt |= zip(unseen, sorted((learnt[token] for token in unseen), reverse=True), strict=True)
    ranked = sorted(learnt.items(), key=lambda entry: (-entry[1], entry[0]))
    tree["model"]["vocab"] = vocabulary[:special] + [list(entry) for entry in ranked]
    return Tokenizer.from_str(json.dumps(tree))
