"""Cleaning: raw JSONL to deduplicated tokens per second, next to datatrove's own pipeline; what is found of planted copies.

The text is made of real sentences (Multi30k's captions, tinyshakespeare, docstrings of Python's library), drawn at random
into documents of some hundred words, so that no two are alike by themselves. Then copies are planted: 5% exact, 5% with a
tenth of their words changed. `--memory` measures instead what `prepare` holds at its peak, over all its processes.

    python bench/cleaning.py                          # speed and planted copies
    python bench/cleaning.py --memory --megabytes 2000
"""

import ast
import gzip
import json
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from report import (
    ROOT,
    SCRATCH,
    Result,
    Rounds,
    fresh_directory,
    median,
    peer_command,
    publish,
    run_json,
    shoal_command,
    take_turns,
)
from report import shown as show
from shoal.core.recipe import Clean
from shoal.data.cleaning.clean import clean_sources
from shoal.data.sources import open_sources

PEER, SHOAL = "datatrove, 2 processes", "shoal prepare"
COLUMNS = ["", "MB/s", "lowest–highest", "times datatrove's speed", "seconds", "tokens"]
FOUND = ["", "exact copies found", "near copies found", "dropped that were copies", "dropped"]
FILES = 4


def sentences() -> list[str]:
    """Real English sentences, a list that is the same on a machine.

    Python's docstrings; and, where these variables name them, captions (`SHOAL_CAPTIONS`, gzipped lines, as of Multi30k)
    and Shakespeare (`SHOAL_TINYSHAKESPEARE`).
    """
    found: list[str] = []
    if captions := os.environ.get("SHOAL_CAPTIONS"):
        found += gzip.decompress(Path(captions).read_bytes()).decode().splitlines()
    if shakespeare := os.environ.get("SHOAL_TINYSHAKESPEARE"):
        text = Path(shakespeare).read_text(encoding="utf-8")
        found += [" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s", text)]
    for path in sorted(Path(ast.__file__).parent.rglob("*.py")):
        if "site-packages" not in path.parts and path.stat().st_size < 300_000:
            found += docstring_sentences(path)
    return [sentence for sentence in dict.fromkeys(found) if 30 <= len(sentence) <= 400]


def docstring_sentences(path: Path) -> Iterator[str]:
    """Sentences of a module's docstrings, without examples."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                if ">>>" not in paragraph:
                    yield from re.findall(r"[A-Z][^.!?{}]+[.!?]", " ".join(paragraph.split()))


@dataclass
class Planted:
    """Files of documents, and which of these are copies, with their originals."""

    folder: Path
    bytes: int = 0
    exact: dict[str, str] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)


def plant(folder: Path, size: int, seed: int = 1) -> Planted:
    """Write documents until there are `size` bytes; a copy stands within the thousand documents after its original."""
    stream = random.Random(seed)
    pool = sentences()
    words = sorted({word for sentence in pool for word in sentence.split()})
    made = Planted(fresh_directory(folder))
    waiting: list[tuple[int, int, str, str]] = []
    files = [(folder / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    number = 0
    while made.bytes < size:
        text = compose(stream, pool)
        if waiting and waiting[0][0] <= number:
            _, original, kind, text = waiting.pop(0)
            (made.exact if kind == "exact" else made.near)[str(number)] = str(original)
        elif (draw := stream.random()) < 0.1 / 0.9:
            copied = ("exact", text) if draw < 0.05 / 0.9 else ("near", change(stream, text, words))
            waiting.append((number + stream.randint(1, 1000), number, *copied))
            waiting.sort()
        # a file after the other: datatrove's order of documents is Shoal's then
        files[min(FILES - 1, made.bytes * FILES // size)].write(json.dumps({"id": str(number), "text": text}) + "\n")
        made.bytes += len(text.encode())
        number += 1
    for file in files:
        file.close()
    return made


def compose(stream: random.Random, pool: list[str]) -> str:
    """A few paragraphs."""
    paragraphs = [" ".join(stream.choices(pool, k=stream.randint(3, 8))) for _ in range(stream.randint(2, 6))]
    return "\n\n".join(paragraphs)


def change(stream: random.Random, text: str, words: list[str]) -> str:
    """The text with a tenth of its words replaced by others."""
    parts = re.split(r"(\s+)", text)
    for place in stream.sample(range(0, len(parts), 2), len(parts) // 20):
        parts[place] = stream.choice(words)
    return "".join(parts)


def peer_contender(planted: Planted, tokenizer: Path) -> Callable[[int], Result]:
    output = SCRATCH / "cleaned" / "datatrove"

    def measure(_: int) -> Result:
        fresh_directory(output)
        return run_json(
            peer_command("datatrove_clean.py", "--folder", planted.folder, "--tokenizer", tokenizer, "--output", output)
        )

    return measure


def shoal_words(planted: Planted, tokenizer: Path, output: Path, preset: str) -> list[str]:
    return shoal_command(
        "prepare", "--json", "--tokenizer.path", tokenizer, "--data.sources", f'["{planted.folder}"]',
        "--data.directory", output, "--data.clean.preset", preset,
    )  # fmt: skip


def shoal_contender(planted: Planted, tokenizer: Path) -> Callable[[int], Result]:
    output = SCRATCH / "cleaned" / "shoal"

    def measure(_: int) -> Result:
        fresh_directory(output)
        result = run_json(shoal_words(planted, tokenizer, output, "web"))
        return result | {"tokens": result["tokens"] + result["held_out_tokens"]}

    return measure


def find_copies(planted: Planted) -> Rounds:
    """What each keeps of the planted copies, with no other stage on."""
    folder = fresh_directory(SCRATCH / "found")
    documents = {
        f"{path}:{number}": json.loads(line)["id"]
        for path in planted.folder.glob("*.jsonl")
        for number, line in enumerate(path.open(encoding="utf-8"), 1)
    }
    everything = set(documents.values())
    sources = open_sources([str(planted.folder)], "text")
    kept, _ = clean_sources(Clean(exact=True, near=True), sources, "text", folder, 2, lambda *_: None)
    results = {"Shoal": [found(planted, everything, {documents[document.name] for document in kept.read()})]}
    for name, ngram, buckets, hashes in (("datatrove as it comes", 5, 14, 8), ("datatrove with Shoal's settings", 3, 32, 4)):
        output = fresh_directory(SCRATCH / "cleaned" / "found")
        words = ("--folder", planted.folder, "--output", output, "--filters", 0)
        settings = ("--ngram", ngram, "--buckets", buckets, "--hashes", hashes)
        result = run_json(peer_command("datatrove_clean.py", *words, *settings))
        results[name] = [found(planted, everything, set(result["kept"]))]
    return results


def found(planted: Planted, everything: set[str], kept: set[str]) -> Result:
    """Recall of each kind of copy, and precision; whether the copy is dropped or its original is all the same."""
    dropped = everything - kept

    def found_of(copies: dict[str, str]) -> int:
        return sum(copy in dropped or original in dropped for copy, original in copies.items())

    exact, near = found_of(planted.exact), found_of(planted.near)
    return {
        "exact_recall": exact / len(planted.exact),
        "near_recall": near / len(planted.near),
        "precision": (exact + near) / max(1, len(dropped)),
        "dropped": len(dropped),
        "documents": len(everything),
    }


def found_row(name: str, result: Result) -> list[str]:
    shares = [f"{result[key]:.4f}" for key in ("exact_recall", "near_recall", "precision")]
    return [name, *shares, f"{result['dropped']:,} of {result['documents']:,}"]


def summary_row(name: str, rounds: Rounds, size: int) -> list[str]:
    rates = [size / 1e6 / result["seconds"] for result in rounds[name]]
    seconds = median(rounds[name], "seconds")
    return [
        name,
        f"{size / 1e6 / seconds:.2f}",
        f"{min(rates):.2f}–{max(rates):.2f}",
        f"{median(rounds[PEER], 'seconds') / seconds:.2f} ×",
        show(seconds, "{:.1f}"),
        show(median(rounds[name], "tokens")),
    ]


def measure_memory(planted: Planted, tokenizer: Path) -> None:
    """Run `prepare` and print the largest sum of resident memory over its processes; pages they share count for each."""
    output = fresh_directory(SCRATCH / "cleaned" / "memory")
    started = time.perf_counter()
    process = subprocess.Popen(shoal_words(planted, tokenizer, output, "text"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peaks = {"sum": 0, "main": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            sizes = resident(process.pid)
            peaks["sum"] = max(peaks["sum"], sum(sizes))
            peaks["main"] = max(peaks["main"], sizes[0] if sizes else 0)

    watching = threading.Thread(target=watch)
    watching.start()
    out, _ = process.communicate()
    ended.set()
    watching.join()
    if process.returncode:
        raise SystemExit(f"prepare ended with exit code {process.returncode}")
    kept = json.loads(out)["cleaning"]
    print(
        f"{planted.bytes / 1e6:,.0f} MB, {kept['documents']:,} documents, {kept['kept_documents']:,} kept, "
        f"{time.perf_counter() - started:,.0f} s: at most {peaks['sum'] / 1e6:,.0f} MB resident over all processes, "
        f"{peaks['main'] / 1e6:,.0f} MB in the main one"
    )


def resident(pid: int) -> list[int]:
    """Resident bytes of a process and all below it, its own first."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task").glob("*/children")
        below = [int(child) for path in children for child in path.read_text().split()]
    except (OSError, IndexError):
        return []
    return [pages * 4096, *(size for child in below for size in resident(child))]


def main(rounds: int = 3, megabytes: int = 30, memory: bool = False, tokenizer: Path | None = None) -> None:
    """Measure cleaning and write bench/results/cleaning.json and cleaning.md.

    Args:
        rounds: How often both are measured.
        megabytes: Text to clean.
        memory: Measure memory instead, of Shoal alone.
        tokenizer: tokenizer.json that both use; none: one of 8,192 tokens trained on this text.
    """
    planted = plant(SCRATCH / "planted", megabytes * 1_000_000)
    if tokenizer is None:
        corpus, source = fresh_directory(SCRATCH / "cleaned" / "tokenizer"), planted.folder / "0.jsonl"
        words = ("--data.sources", source, "--data.directory", corpus, "--tokenizer.sample_bytes", 4_000_000)
        run_json(shoal_command("prepare", "--json", *words))
        tokenizer = corpus / "tokenizer.json"
    tokenizer = tokenizer.resolve()
    if memory:
        measure_memory(planted, tokenizer)
        return
    contenders = {PEER: peer_contender(planted, tokenizer), SHOAL: shoal_contender(planted, tokenizer)}
    results = take_turns(contenders, rounds)
    rows = [summary_row(name, results, planted.bytes) for name in results]
    notes = [
        f"Medians over {rounds} rounds; {planted.bytes / 1e6:.1f} MB of English, 2 cores, from JSONL to tokens on disk.",
        "Both: ftfy, rules of Gopher, C4 and FineWeb, MinHash, tokens. Shoal also tells the language, drops exact copies, "
        "holds out documents and writes a report; datatrove splits words with spaCy.",
    ]
    for result in results[PEER]:
        del result["kept"]
    publish("cleaning", "Raw text to cleaned, deduplicated tokens", COLUMNS, rows, notes, results)
    copies = find_copies(planted)
    notes = [
        f"{len(planted.exact):,} exact copies and {len(planted.near):,} with a tenth of their words changed were planted."
    ]
    rows = [found_row(name, result) for name, (result,) in copies.items()]
    publish("duplicates", "Planted copies", FOUND, rows, notes, copies, script="cleaning")


if __name__ == "__main__":
    tyro.cli(main)
