"""Loss at equal tokens: every method trains a model to the end, over loopback, as the link does not change results.

On a model small enough to see 20 tokens a parameter. Speeds are measured apart, on a larger one (`bench.network`).
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from shoal.bench.methods import METHODS, Keys, is_served, to_the_end
from shoal.bench.places import places, run_ranks
from shoal.bench.raw import Raw, Row
from shoal.bench.served import run_served
from shoal.core.errors import ShoalError
from shoal.core.files import read_json

TOKENS_PER_PARAMETER = 20

EVALUATIONS = 20
"""Points of a curve."""


@dataclass(frozen=True)
class Plan:
    """Which recipe, on how many ranks, by which methods, with which seeds."""

    recipe: Path
    hosts: tuple[int, ...] = (2,)
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (1,)


def measure(plan: Plan, raw: Raw, tell: Callable[[str], None]) -> None:
    """Train what `raw` lacks. A method by which the link decides has no loss of its own."""
    facts = _facts(plan)
    for number in plan.hosts:
        for seed in plan.seeds:
            for method in plan.methods:
                key = {"kind": "loss", "recipe": plan.recipe.stem, "hosts": number, "method": method, "seed": seed}
                if method in METHODS and method != "auto" and raw.find(key) is None:
                    row = key | _train(plan, number, METHODS[method], seed, facts)
                    raw.add(row)
                    tell(f"{number} ranks, {method}, seed {seed}: held-out loss {row['eval_loss']:.4f}")


def _facts(plan: Plan) -> dict[str, Any]:
    """What the recipe takes: `parameters`, `tokens_per_step`."""
    words = [sys.executable, "-m", "shoal", "pretrain", str(plan.recipe), "--dry-run", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ShoalError(done.stderr.strip())
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _train(plan: Plan, number: int, method: Keys, seed: int, facts: dict[str, Any]) -> Row:
    steps = TOKENS_PER_PARAMETER * facts["parameters"] // facts["tokens_per_step"]
    keys: Keys = {
        "name": "losses",
        "seed": seed,
        "train.steps": steps,
        "train.tokens": 0,
        "train.minutes": 0.0,
        "train.device": "cpu",
        "evaluation.every": max(1, steps // EVALUATIONS),
        "parallel.threads": 1,
        "parallel.timeout": 7200.0,
        **to_the_end(method, steps),
    }
    flags = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder, places(number, 0.0, namespaces=False) as where:
        words = ["-m", "shoal", "pretrain", str(plan.recipe), "--quiet", "--runs", folder, *flags]
        if is_served(method):
            run_served(where, words)
        else:
            run_ranks(where, lambda rank: words)
        run = Path(folder) / "losses"
        result = read_json(run / "result.json")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "eval_loss": result["eval_loss"],
        "curve": [[line["step"], line["eval_loss"]] for line in lines if "eval_loss" in line],
        "wire_bytes": statistics.mean(line["wire_bytes"] for line in lines if "wire_bytes" in line),
        "parameters": facts["parameters"],
        "steps": steps,
        "tokens": result["tokens"],
    }


def table(raw: Raw) -> Table:
    """Held-out losses at equal tokens: means over seeds, and how far from plain training with the same seeds."""
    rows = [row for row in raw.rows if row["kind"] == "loss"]
    drawn = Table("ranks", "method", "seeds", "held-out loss", "of plain training", "bits a parameter a step", box=None)
    for hosts, method in dict.fromkeys((row["hosts"], row["method"]) for row in rows):
        mine = {row["seed"]: row for row in rows if (row["hosts"], row["method"]) == (hosts, method)}
        plain = {row["seed"]: row["eval_loss"] for row in rows if (row["hosts"], row["method"]) == (hosts, "fp32")}
        ratios = [row["eval_loss"] / plain[seed] - 1 for seed, row in mine.items() if seed in plain]
        spread = f" ± {statistics.stdev(ratios):.2%}" if len(ratios) > 1 else ""
        drawn.add_row(
            str(hosts), method, str(len(mine)), f"{statistics.mean(row['eval_loss'] for row in mine.values()):.4f}",
            f"{statistics.mean(ratios):+.2%}{spread}" if ratios else "",
            f"{statistics.mean(8 * row['wire_bytes'] / row['parameters'] for row in mine.values()):.3f}",
        )  # fmt: skip
    return drawn
