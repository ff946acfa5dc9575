"""How right an answer is, as the official evaluation of SQuAD counts it, versions 1.1 and 2.0.

Texts are compared in lower case, without ASCII punctuation and the articles a, an and the, at single spaces. `exact`: they
are the same; `f1`: of the words that they share, each as often as both have it. Of several right answers the best counts.
The versions differ where nothing is left of a text: 1.1 finds no words shared, F1 0, also if both are empty; 2.0 has F1 1
then, drops such right answers, and where none is left the right one is to give none.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """The text as it is compared."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def score(told: str, right: Sequence[str], unanswerable: bool) -> tuple[float, float]:
    """(exact match, F1) of an answer, each from 0 to 1, by version 2.0 where questions may be `unanswerable`, or 1.1."""
    golds = [plain(text) for text in right]
    if unanswerable:
        golds = [gold for gold in golds if gold] or [""]
    words = plain(told)
    return max(float(words == gold) for gold in golds), max(
        _shared(words.split(), gold.split(), unanswerable) for gold in golds
    )


def _shared(told: Sequence[str], gold: Sequence[str], unanswerable: bool) -> float:
    if unanswerable and not (told and gold):
        return float(told == gold)
    same = (Counter(told) & Counter(gold)).total()
    if not same:
        return 0.0
    precision, recall = same / len(told), same / len(gold)
    return 2 * precision * recall / (precision + recall)
