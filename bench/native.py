"""What kernels of Shoal's own are worth: one GPT trained with each, and with the library's in its place, by turns.

    python bench/native.py --rounds 2

In one process on two threads, in fp32. With dropout, as hashed masks, or as PyTorch draws its random numbers.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from report import (
    ROOT,
    SCRATCH,
    Result,
    median,
    median_speed,
    publish,
    read_steps,
    run_json,
    shoal_command,
    shown,
    take_turns,
)
from train import compiler_cache

WITHOUT = "import sys; from shoal.core.native import {0}; {0}.{1}; from shoal.cli import main; sys.exit(main())"
PRODUCTS = WITHOUT.format("matrices", "serves = lambda: False")
MASKS = WITHOUT.format("dropout", "available = lambda: False")
CONTENDERS = {  # what is taken away, the rate of dropout, next to which it is told
    "own products": ("", 0.0, "own products"),
    "products of the library": (PRODUCTS, 0.0, "own products"),
    "own products, dropout hashed": ("", 0.1, "own products, dropout hashed"),
    "own products, dropout by torch": (MASKS, 0.1, "own products, dropout hashed"),
}
COLUMNS = ["", "tokens/s", "lowest–highest", "of what is own", "MFU", "memory"]


def contender(name: str, recipe: Path, corpus: Path, steps: int, warmup: int) -> Callable[[int], Result]:
    without, rate, _ = CONTENDERS[name]
    words = (
        *("pretrain", recipe, "--json", "--quiet", "--workers", 1, "--parallel.threads", 2, "--train.steps", steps),
        *("--model.dropout", rate, "--model.attention_dropout", 0.0, "--data.directory", corpus),
        *("--runs", SCRATCH / "native", "--name", name.replace(" ", "-").replace(",", ""), "--overwrite"),
    )
    command = [sys.executable, "-c", without, *map(str, words)] if without else shoal_command(*words)

    def measure(round_number: int) -> Result:
        result = run_json(command, **compiler_cache(f"native {name}", round_number))
        return result | {"tokens_per_second": median_speed(read_steps(result), warmup)}

    return measure


def main(rounds: int = 2, steps: int = 12, warmup: int = 4, recipe: Path = ROOT / "recipes" / "gpt-bench.yaml") -> None:
    """Measure, and write bench/results/native.json and .md.

    Args:
        rounds: How often everyone is measured.
        steps: Optimizer steps a measurement.
        warmup: First steps that do not count.
        recipe: What is trained.
    """
    corpus = ROOT / "data" / recipe.stem
    run_json(shoal_command("prepare", recipe, "--data.directory", corpus, "--json"))
    results = take_turns({name: contender(name, recipe, corpus, steps, warmup) for name in CONTENDERS}, rounds)
    rows = []
    for name, ran in results.items():
        speeds = [result["tokens_per_second"] for result in ran]
        own = median(results[CONTENDERS[name][2]], "tokens_per_second")
        rows.append(
            [
                name,
                shown(median(ran, "tokens_per_second")),
                f"{min(speeds):,.0f}–{max(speeds):,.0f}",
                shown(median(ran, "tokens_per_second") / own, "{:.2f} ×"),
                shown(median(ran, "mfu_median"), "{:.1%}"),
                shown(median(ran, "peak_memory_bytes") / 1e6, "{:,.0f} MB"),
            ]
        )
    notes = [f"Medians over {rounds} rounds of {steps} steps of {recipe.stem}, 2 threads."]
    publish("native", "Own kernels and the library's, fp32", COLUMNS, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
