"""Corpus preparation: raw text to tokens on disk per second, `shoal prepare` or `datasets.map`, with one tokenizer.

The text is the Python standard library's source, one file a document, repeated with a line of its own at the top of
every copy until there are 60 MB, so that dropping duplicates would gain nobody anything. Both read the same files and
write all their tokens; the rate is the text's bytes over the seconds each takes once its libraries are imported, and
the whole process's seconds are given beside it. Shoal does more in that time: it splits off held-out documents and
writes checksums.
"""

import itertools
import sysconfig
from collections.abc import Callable, Iterator
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
    shown,
    take_turns,
)

PEER, SHOAL = "datasets.map, 2 processes", "shoal prepare"
COLUMNS = ["", "MB/s", "lowest–highest", "times datasets' speed", "whole process", "tokens"]


def write_documents(folder: Path, size: int) -> int:
    """Fills the folder with `size` bytes of Python source, or a file more, and returns how many there are."""
    documents = ((copy, name, text) for copy in itertools.count() for name, text in standard_library())
    written = 0
    while written < size:
        copy, name, text = next(documents)
        path = folder / f"copy-{copy}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written += path.write_bytes(f"# Copy {copy}.\n{text}".encode())
    return written


def standard_library() -> Iterator[tuple[Path, str]]:
    """Its modules that are UTF-8, as names and texts with plain line ends."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[0] in ("site-packages", "dist-packages"):
            continue
        try:
            yield name, path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            continue  # some test files are broken on purpose


def peer_contender(documents: Path, tokenizer: Path) -> Callable[[int], Result]:
    output = SCRATCH / "prepared" / "datasets"
    command = peer_command("datasets_map.py", "--folder", documents, "--tokenizer", tokenizer, "--output", output)

    def measure(_: int) -> Result:
        fresh_directory(output)
        return run_json(command)

    return measure


def shoal_contender(recipe: Path, documents: Path, tokenizer: Path) -> Callable[[int], Result]:
    output = SCRATCH / "prepared" / "shoal"
    overrides = (
        "--tokenizer.path",
        tokenizer,
        "--data.sources",
        f'["{documents}"]',
        "--data.directory",
        output.relative_to(ROOT),
    )
    command = shoal_command("prepare", recipe, "--json", *overrides)

    def measure(_: int) -> Result:
        fresh_directory(output)
        result = run_json(command)
        return result | {"tokens": result["tokens"] + result["held_out_tokens"]}

    return measure


def summary_row(name: str, rounds: Rounds, size: int) -> list[str]:
    rates = [size / 1e6 / result["seconds"] for result in rounds[name]]
    seconds = median(rounds[name], "seconds")
    return [
        name,
        f"{size / 1e6 / seconds:.2f}",
        f"{min(rates):.2f}–{max(rates):.2f}",
        f"{median(rounds[PEER], 'seconds') / seconds:.2f} ×",
        shown(median(rounds[name], "process_seconds"), "{:.1f} s"),
        shown(median(rounds[name], "tokens")),
    ]


def main(
    rounds: int = 3,
    megabytes: int = 60,
    recipe: Path = ROOT / "recipes" / "gpt-bench.yaml",
    tokenizer: Path | None = None,
) -> None:
    """Measure corpus preparation and write bench/results/prepare.json and prepare.md.

    Args:
        rounds: How often both are measured.
        megabytes: Text to prepare.
        recipe: Shoal's recipe; its text and tokenizer are replaced.
        tokenizer: tokenizer.json that both use; none: the one of the recipe's own corpus.
    """
    if tokenizer is None:
        corpus = ROOT / "data" / recipe.stem
        tokenizer = corpus / "tokenizer.json"
        run_json(shoal_command("prepare", recipe, "--data.directory", corpus, "--json"))
    tokenizer = tokenizer.resolve()
    documents = fresh_directory(SCRATCH / "documents")
    size = write_documents(documents, megabytes * 1_000_000)
    contenders = {
        PEER: peer_contender(documents, tokenizer),
        SHOAL: shoal_contender(recipe, documents, tokenizer),
    }
    results = take_turns(contenders, rounds)
    notes = [f"Medians over {rounds} rounds; {size / 1e6:.1f} MB of Python source, tokens written to disk."]
    for name, ran in results.items():
        if any(abs(result["bytes"] - size) > 0.01 * size for result in ran):
            notes.append(f"NOT COMPARABLE: {name} counted {ran[0]['bytes'] / 1e6:.1f} MB of text.")
    rows = [summary_row(name, results, size) for name in results]
    publish("prepare", "Raw text to tokens on disk", COLUMNS, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
