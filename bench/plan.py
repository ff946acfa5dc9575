"""Is what `shoal plan` foretells what then happens? Three recipes, each planned and then run, in turn, on this machine.

A plan counts as right where seconds a step, the time from the command to its return, and the peak memory of a rank are
within 15% of the run's. Runs are short but whole: they start, train, evaluate, save, and write model and report.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import tyro

from report import ROOT, SCRATCH, Result, Rounds, median, publish, run_json, shoal_command, shown, take_turns

COLUMNS = ["", "a step", "ratio", "whole run", "ratio", "memory a rank", "ratio"]

BENCH, SHAKESPEARE, DIVIDED = "gpt-bench", "gpt-shakespeare", "llama-tiny, zero3 over 2 ranks"

LLAMA = {
    "--model.preset": "llama-tiny", "--model.context": 128, "--model.layers": 4, "--train.global_batch": 16,
    "--train.micro_batch": 4, "--evaluation.every": 10, "--evaluation.sequences": 32, "--evaluation.final_sequences": 64,
    "--parallel.shard": "zero3", "--checkpoint.every": 10,
}  # fmt: skip


def cases(shakespeare: Path, steps: int) -> dict[str, tuple[str, int, dict[str, Any]]]:
    """Name to (recipe, ranks, keys)."""
    found: dict[str, tuple[str, int, dict[str, Any]]] = {
        BENCH: ("gpt-bench", 1, {"--train.steps": steps}),
        DIVIDED: ("gpt-bench", 2, {"--train.steps": steps, **LLAMA}),
    }
    if shakespeare.exists():
        found[SHAKESPEARE] = ("gpt-shakespeare", 1, {"--data.sources": shakespeare, "--data.directory": "data/shakespeare"})
    else:
        print(f"{SHAKESPEARE} is skipped: there is no {shakespeare}")
    return found


def contender(recipe: str, workers: int, keys: dict[str, Any]) -> Any:
    words = [*("plan", recipe), "--workers", workers, *(word for pair in keys.items() for word in pair)]

    def measure(round_number: int) -> Result:
        planned = run_json(shoal_command(*words, "--json", "--quiet"))
        folder = SCRATCH / "plan-runs"
        shutil.rmtree(folder, ignore_errors=True)
        ran = ("pretrain", *words[1:], "--runs", folder, "--name", "planned", "--json", "--quiet")
        began = time.perf_counter()
        result = run_json(shoal_command(*ran))
        wall = time.perf_counter() - began
        told = planned["forecast"]
        tokens = told["step_seconds"] * told["tokens_per_second"]
        return {
            "planned": planned,
            "step_foretold": told["step_seconds"],
            "step_measured": tokens / result["tokens_per_second_median"],
            "total_foretold": told["total_seconds"],
            "total_measured": wall,
            "memory_foretold": planned["memory_bytes"],
            "memory_formula": planned["memory_by_formula_bytes"],
            "memory_measured": result["peak_memory_bytes"],
            "plan_seconds": planned["process_seconds"],
        }

    return measure


def summary_row(name: str, rounds: Rounds) -> list[str]:
    row = [name]
    for what, template, unit in (("step", "{:.3f} s", 1), ("total", "{:.1f} s", 1), ("memory", "{:,.0f} MB", 1e6)):
        foretold, measured = (median(rounds[name], f"{what}_{kind}") for kind in ("foretold", "measured"))
        texts = [shown(value / unit, template) for value in (foretold, measured)]
        row += [" → ".join(texts), shown(foretold / measured, "{:.2f}")]
    return row


def main(
    rounds: int = 3, steps: int = 30, shakespeare: Path = ROOT / "tinyshakespeare.txt", only: tuple[str, ...] = ()
) -> None:
    """Measure and write bench/results/plan.json and plan.md.

    Args:
        rounds: How often each recipe is planned and run.
        steps: Optimizer steps of the runs that are not Shakespeare's, whose recipe says.
        shakespeare: The text of that recipe.
        only: Cases, by name; none: all.
    """
    chosen = {name: case for name, case in cases(shakespeare, steps).items() if not only or name in only}
    for recipe, keys in {recipe: keys for recipe, _, keys in chosen.values()}.items():
        data = {key: value for key, value in keys.items() if key.startswith("--data.")}
        run_json(shoal_command("prepare", recipe, *(word for pair in data.items() for word in pair), "--json"))
    results = take_turns({name: contender(*case) for name, case in chosen.items()}, rounds)
    formula = [median(results[name], "memory_formula") / median(results[name], "memory_measured") for name in results]
    formulas = ", ".join(f"{ratio:.2f}" for ratio in formula)
    notes = [
        "Each cell: foretold → measured, and foretold over measured; medians of the rounds.",
        f"Memory by the formula alone, as `--dry-run` tells it: {formulas} of measured.",
        f"A plan took {', '.join(shown(median(results[name], 'plan_seconds'), '{:.0f} s') for name in results)}.",
    ]
    rows = [summary_row(name, results) for name in results]
    publish("plan", "What is foretold, and what then happens", COLUMNS, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
