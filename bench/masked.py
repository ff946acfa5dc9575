"""Masked pre-training: Shoal next to Hugging Face's Trainer with its collator, on one BERT and the same documents.

Real tokens a second, padding not counted, of the median step after the warm-up. The documents are Python's standard library
by paragraphs: text between blank lines, of 60 tokens on average and a context of 256 at most, which the peer pads to the
longest of a batch, or joins into full rows (`packed`, as its own example does); Shoal packs whole documents that don't see
each other. Everyone masks 15% of the tokens as BERT does, trains in fp32 with AdamW, 16 rows a step, on two threads.
"""

import json
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import tyro

from report import (
    ROOT,
    SCRATCH,
    Result,
    comparable,
    median,
    median_speed,
    peer_command,
    publish,
    read_steps,
    run_json,
    shoal_command,
    shown,
    take_turns,
)
from train import compiler_cache

PEERS = {
    "trainer, padded": (),
    "trainer, packed": ("--packed",),
    "trainer, packed, compiled": ("--packed", "--compile"),
}
SHOAL = "shoal, packed"
COLUMNS = ["", "real tokens/s", "of best peer", "real share", "first step", "memory"]


def write_documents(file: Path, megabytes: int) -> Path:
    """The standard library by paragraphs, a JSON line each."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with file.open("w", encoding="utf-8") as lines:
            for source in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
                if "site-packages" in source.parts or size > megabytes * 1_000_000:
                    continue
                text = source.read_text(encoding="utf-8", errors="ignore")
                for paragraph in text.split("\n\n"):
                    if 40 <= len(paragraph) <= 600:
                        size += lines.write(json.dumps({"text": paragraph}) + "\n")
    return file


def peer_contender(name: str, corpus: Path, size: list[object]) -> Callable[[int], Result]:
    command = peer_command("hugging_face_masked.py", "--corpus", corpus, "--threads", 2, *size, *PEERS[name])
    return lambda round_number: run_json(command, **compiler_cache(f"masked {name}", round_number))


def shoal_contender(recipe: Path, corpus: Path, steps: int, warmup: int) -> Callable[[int], Result]:
    stamp = time.strftime("%Y%m%d-%H%M%S")

    def measure(round_number: int) -> Result:
        command = shoal_command(
            *("pretrain", recipe, "--json", "--parallel.threads", 2, "--train.steps", steps),
            *("--data.directory", corpus, "--name", f"bench-masked-{stamp}-{round_number + 1}"),
        )
        result = run_json(command, **compiler_cache("masked shoal", round_number))
        speed = median_speed(read_steps(result), warmup)
        return result | {"tokens_per_second": speed, "real_share": result["tokens"] / (result["steps"] * 16 * 256)}

    return measure


def main(
    rounds: int = 3,
    steps: int = 30,
    warmup: int = 5,
    megabytes: int = 20,
    recipe: Path = ROOT / "recipes" / "bert-bench.yaml",
    only: tuple[str, ...] = (),
) -> None:
    """Measure masked pre-training and write bench/results/masked.json and masked.md.

    Args:
        rounds: How often everyone is measured; the first is the cold one.
        steps: Optimizer steps a measurement.
        warmup: First steps that do not count towards the speed.
        megabytes: Text that documents are taken from, at most.
        recipe: What Shoal trains; its model and batch must be those of the peers' defaults.
        only: Contenders to measure, by name; none: all of them.
    """
    corpus = ROOT / "data" / recipe.stem
    documents = write_documents(SCRATCH / f"paragraphs-{megabytes}.jsonl", megabytes)
    run_json(shoal_command("prepare", recipe, "--json", "--data.sources", f'["{documents}"]', "--data.directory", corpus))
    size: list[object] = ["--steps", steps, "--warmup", warmup]
    contenders = {name: peer_contender(name, corpus, size) for name in PEERS}
    contenders[SHOAL] = shoal_contender(recipe, corpus, steps, warmup)
    if unknown := set(only) - contenders.keys():
        raise SystemExit(f"no contender {sorted(unknown)}; there are {[*contenders]}")
    results = take_turns({name: contenders[name] for name in only or contenders}, rounds)
    best = max((median(results[name], "tokens_per_second") for name in PEERS if name in results), default=float("nan"))
    rows = [
        [
            name,
            shown(median(ran, "tokens_per_second")),
            shown(median(ran, "tokens_per_second") / best, "{:.2f} ×"),
            shown(median(ran, "real_share"), "{:.1%}"),
            shown(median(ran[1:] or ran, "first_step_seconds"), "{:.1f} s"),
            shown(median(ran, "peak_memory_bytes") / 1e6, "{:,.0f} MB"),
        ]
        for name, ran in results.items()
    ]
    notes = [
        f"Medians over {rounds} rounds of {steps} steps; the first step with what the compiler kept of the first round."
    ]
    notes += comparable(results)
    publish("masked", "Masked pre-training, BERT of 14M parameters in fp32", COLUMNS, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
