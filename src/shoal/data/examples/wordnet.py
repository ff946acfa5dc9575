"""Synonyms from WordNet's files (Miller 1995; wndb(5)): words that share a meaning, as `data.noun` and its like list them.

Debian's package `wordnet-base` has them, and so has `nltk`'s data. Words are taken as they are written: a plural or a past
tense is found only if WordNet lists it.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from shoal.core.errors import InputError

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

PLACES = ("/usr/share/wordnet", "/usr/share/nltk_data/corpora/wordnet", "~/nltk_data/corpora/wordnet")


def find_wordnet() -> Path:
    """The folder with WordNet's files: `$WNSEARCHDIR`, or where packages put it; `InputError` says how to get it."""
    places = [Path(place).expanduser() for place in (os.environ.get("WNSEARCHDIR", ""), *PLACES) if place]
    for folder in places:
        if all((folder / name).exists() for name in FILES):
            return folder
    raise InputError(
        "'augment.synonyms' needs WordNet: install it (apt install wordnet-base, or python -m nltk.downloader wordnet), or "
        "name the folder with data.noun in WNSEARCHDIR; or set it to 0"
    )


def read_synonyms(folder: Path) -> Callable[[str], Sequence[str]]:
    """Other words for one, sorted; none for words that are not there."""
    meanings: dict[str, set[str]] = defaultdict(set)
    for name in FILES:
        for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(" "):  # the licence
                continue
            fields = line.split(" ")
            # of an adjective a mark may follow, such as (p): where it stands
            words = [fields[4 + 2 * number].partition("(")[0] for number in range(int(fields[3], 16))]
            single = {word for word in words if "_" not in word}
            for word in single:
                meanings[word.lower()] |= single
    found = {word: sorted(others - {word}) for word, others in meanings.items()}
    return lambda word: found.get(word.lower(), ())
