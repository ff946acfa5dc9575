"""Corpora in which it is known which documents are copies, exact or with some words changed."""

import random
from collections.abc import Sequence

from texts import join

WORDS = {
    "en": [f"{first}{last}" for first in "ba co di fu ge hi ko lu ma ne pi ro su te vo wa".split() for last in  # noqa: SIM905
           ("n", "rder", "sing", "t", "llow", "ght", "st", "ve", "nd", "mp", "tion", "less", "ch", "ck", "le")] * 1,
    "zh": [chr(0x4E00 + 7 * number) + chr(0x5E00 + 3 * number % 900) * (number % 2) for number in range(1500)],
    "ja": [chr(0x4E00 + 9 * number) + "のかをにはがと"[number % 7] * (number % 2) for number in range(1500)],
}  # fmt: skip


def planted(language: str, words: Sequence[str], count: int, seed: int = 1) -> tuple[list[str], list[int], list[int]]:
    """Texts, and which of them are exact copies (5%), and copies with a tenth of their words changed (5%).

    Word frequencies fall off as they do in language; copies come after their originals, anywhere.
    """
    stream = random.Random(seed)
    weights = [1 / (rank + 10) for rank in range(len(words))]
    documents = [stream.choices(words, weights, k=stream.randint(100, 300)) for _ in range(count)]
    copies = count // 20
    chosen = stream.sample(range(count), 2 * copies)
    exact = [list(documents[number]) for number in chosen[:copies]]
    near = [_changed(documents[number], words, stream) for number in chosen[copies:]]
    order = [
        (stream.random() + (kind > 0), kind, text) for kind, texts in enumerate((documents, exact, near)) for text in texts
    ]
    order.sort(key=lambda entry: entry[0])
    kinds = [kind for _, kind, _ in order]
    texts = [join(language, text) for _, _, text in order]
    return texts, [n for n, kind in enumerate(kinds) if kind == 1], [n for n, kind in enumerate(kinds) if kind == 2]


def _changed(words: list[str], vocabulary: Sequence[str], stream: random.Random) -> list[str]:
    changed = list(words)
    for place in stream.sample(range(len(words)), len(words) // 10):
        changed[place] = stream.choice(vocabulary)
    return changed
