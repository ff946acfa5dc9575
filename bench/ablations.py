"""What bought how much: `recipes/gpt-shakespeare` with one thing taken back at a time.

Every variant trains on the recipe's own token budget and is evaluated on the whole validation split, so its loss says what
the thing is worth at equal tokens, and its seconds what it costs. Differences below 0.01 are the seed's.
"""

import os
from collections.abc import Callable
from pathlib import Path

import tyro

from report import ROOT, Result, median, publish, run_json, shoal_command, shown, take_turns

RECIPE = ROOT / "recipes" / "gpt-shakespeare.yaml"
VARIANTS: dict[str, tuple[object, ...]] = {
    "the recipe": (),
    "AdamW for all (rate 0.005)": ("--optimizer.kind", "adamw", "--optimizer.learning_rate", 0.005),
    "Muon's rows not evened": ("--optimizer.muon_row_decay", 0),
    "Muon's momentum 0.95 (0.9)": ("--optimizer.muon_momentum", 0.95),
    "five of Jordan's rounds (three)": ("--optimizer.muon_iterations", 5),
    "embeddings at a third of the rate": ("--optimizer.embedding_rate", 0.33),
    "global batch 16 (8)": ("--train.global_batch", 16),
    "width 128, hidden 352 (64, 176)": ("--model.dim", 128, "--model.heads", 4, "--model.hidden", 352),
    "rotary base 10,000 (30)": ("--model.rope_theta", 10_000),
    "queries and keys not normalised": ("--model.qk_norm", "false"),
    "tied embeddings": ("--model.tied", "true"),
    "blocks that start at random": ("--model.zero_init", "false"),
    "squared ReLU in the gate": ("--model.activation", "relu2"),
    "warm-up 5%, cosine to a tenth": ("--schedule.kind", "cosine", "--schedule.warmup", 0.05, "--schedule.final", 0.1),
}


def contender(name: str, corpus: Path) -> Callable[[int], Result]:
    def measure(round_number: int) -> Result:
        common = (
            "--name",
            "bench-ablation",
            "--overwrite",
            "--json",
            "--seed",
            round_number + 1,
            "--data.directory",
            corpus,
        )
        return run_json(shoal_command("pretrain", RECIPE, "--data.directory", corpus, *common, *VARIANTS[name]))

    return measure


def main(text: Path | None = None, rounds: int = 2) -> None:
    """Train every variant and write bench/results/ablations.json and ablations.md.

    Args:
        text: tinyshakespeare, one file of text; none: what SHOAL_TINYSHAKESPEARE names.
        rounds: Seeds.
    """
    text = text or Path(os.environ.get("SHOAL_TINYSHAKESPEARE", "tinyshakespeare.txt"))
    if not text.is_file():
        raise SystemExit(f"no file {text}: give tinyshakespeare's text by --text FILE or SHOAL_TINYSHAKESPEARE")
    corpus = ROOT / "data" / RECIPE.stem
    source = f'["{text.resolve()}"]'
    run_json(shoal_command("prepare", RECIPE, "--json", "--data.sources", source, "--data.directory", corpus))
    results = take_turns({name: contender(name, corpus) for name in VARIANTS}, rounds)
    base = median(results["the recipe"], "eval_loss")
    rows = [
        [
            name,
            shown(median(ran, "eval_loss"), "{:.3f}"),
            shown(median(ran, "eval_loss") - base, "{:+.3f}"),
            shown(median(ran, "train_seconds_from_start"), "{:.1f} s"),
        ]
        for name, ran in results.items()
    ]
    tokens = results["the recipe"][0]["tokens"]
    notes = [f"Medians of {rounds} seeds at {tokens:,} tokens. In brackets: what the recipe has."]
    columns = ["changed", "validation loss", "worse by", "from start to trained"]
    publish("ablations", "What each part of recipes/gpt-shakespeare buys", columns, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
