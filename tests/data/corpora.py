"""Texts to make small corpora of."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

SONG = "the shoal of fish turns at once as if it were one animal while no fish leads it naïve café 42 1999 «мир» 海"
WORDS = SONG.split()


def sentences(count: int, seed: int = 0) -> Iterator[str]:
    """Different texts of a few hundred characters."""
    stream = random.Random(seed)
    for number in range(count):
        yield f"{number}: " + " ".join(stream.choices(WORDS, k=stream.randint(20, 80))) + ".\n"


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
    return path
