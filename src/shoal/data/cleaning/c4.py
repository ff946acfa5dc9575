"""C4's rules (Raffel et al. 2020, JMLR 21, section 2.2, with the numbers of its published code): lines, then the page.

Lines go that name JavaScript or a policy, have fewer than three words, or a word of over a thousand characters; pages go
that hold a curly bracket or "lorem ipsum", or fewer than five sentences after that. C4 also drops each line that does
not end in punctuation, which costs 30% of the tokens: FineWeb leaves that out, and so do we unless asked.
Of a document that is judged by its beginning, only the beginning loses lines.
"""

import re

from shoal.data.cleaning.draft import Draft, Dropped, Stage
from shoal.data.cleaning.thresholds import LimitsByLanguage, Thresholds

POLICIES = (
    "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
TERMINAL = (".", "?", "!", '"', "'", "”", "’", "。", "？", "！", "」", "』")
_SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|[。！？!?…]+[”’」』）]*")
_SPACES = re.compile(r"\s")


def open_c4(limits: LimitsByLanguage, terminal: bool) -> Stage:
    """Drop lines and documents; `terminal`: also each line without punctuation at its end."""

    def judge(draft: Draft) -> Draft | Dropped:
        text = draft.text
        if "{" in text:
            return Dropped("curly_bracket")
        lowered = text.lower()
        if "lorem ipsum" in lowered:
            return Dropped("lorem_ipsum")
        own = limits[draft.language]
        lines = text.split("\n")
        kept = [line for line in lines if not line.strip() or _keeps(line, draft.spaceless, own, terminal)]
        if _names_policy(lowered):
            kept = [line for line in kept if not _names_policy(line.lower())]
        if len(kept) < len(lines):
            draft = Draft("\n".join(kept).strip("\n"), draft.language)
        sentences, least = count_sentences(draft.text), max(1, own.sentences_least)  # what lost all its lines is nothing
        if sentences < least:
            return Dropped("sentences_least", f"{sentences} (limit {least:g})")
        return draft

    return judge


def count_sentences(text: str) -> int:
    """Ends of sentences, and of lines that end without one."""
    return sum(max(1, len(_SENTENCE.findall(line))) for line in text.split("\n") if line.strip())


def _names_policy(lowered: str) -> bool:
    return any(policy in lowered for policy in POLICIES)


def _keeps(line: str, spaceless: bool, limits: Thresholds, terminal: bool) -> bool:
    line = line.strip()
    words = line.split()
    # a paragraph of Chinese is one "word" between spaces, and has its characters for words
    count = len(_SPACES.sub("", line)) if spaceless else len(words)
    longest = 0 if spaceless else max(map(len, words))
    return (
        count >= limits.line_words_least
        and longest <= limits.word_characters_most
        and not (terminal and (not line.endswith(TERMINAL) or line.endswith("...")))
    )
