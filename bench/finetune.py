"""Fine-tuning: Shoal next to Hugging Face's Trainer, one BERT on the same examples, batch, rate and threads.

`classify`: SST-2, all weights. `tag`: named entities. Speeds are real tokens a second over all steps after the warm-up,
padding not counted; scores (accuracy, entity F1) are those of the last weights on the same held-out examples, over seeds.
The peer pads batches that are drawn at random, or grouped by length; compiled too.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from report import ROOT, Result, median, peer_command, publish, run_json, shoal_command, shown, take_turns
from train import compiler_cache

PEERS = {
    "trainer": (),
    "trainer, by length": ("--grouped",),
    "trainer, by length, compiled": ("--grouped", "--compile"),
}
SHOAL = "shoal"
COLUMNS = ["", "real tokens/s", "of best peer", "score, mean ± deviation", "training", "first step", "memory"]
FIGURE = {"classify": "eval_accuracy", "tag": "eval_f1"}


def peer_contender(name: str, words: list[object], epochs: float, rate: float, batch: int) -> Callable[[int], Result]:
    def measure(number: int) -> Result:
        size: list[object] = ["--epochs", epochs, "--rate", rate, "--batch", batch, "--seed", number + 1]
        command = peer_command("hugging_face_finetune.py", *words, *size, *PEERS[name])
        return run_json(command, **compiler_cache(f"finetune {name}", number))

    return measure


def shoal_contender(
    task: str, model: Path, train: Path, held_out: Path, epochs: float, rate: float, batch: int, warmup: int
) -> Callable[[int], Result]:
    stamp = time.strftime("%Y%m%d-%H%M%S")

    def measure(number: int) -> Result:
        command = shoal_command(
            *("finetune", "--task", task, "--model", model, "--data", train, "--examples.validation", held_out, "--json"),
            *("--train.epochs", epochs, "--optimizer.learning_rate", rate, "--train.global_batch", batch),
            *("--examples.length", 128, "--parallel.threads", 2, "--seed", number + 1, "--evaluation.patience", 0),
            *("--evaluation.every", 1_000_000, "--name", f"bench-finetune-{stamp}-{number + 1}"),
        )
        result = run_json(command, **compiler_cache(f"finetune {SHOAL}", number))
        lines = [json.loads(line) for line in (ROOT / result["run"] / "metrics.jsonl").read_text().splitlines()]
        counted = [line for line in lines if "step_seconds" in line][warmup:]
        tokens = sum(line["tokens_per_second"] * line["step_seconds"] for line in counted)
        seconds = sum(line["step_seconds"] for line in counted)
        return result | {
            "tokens_per_second": tokens / seconds,
            "score": result[FIGURE[task]],
            "train_seconds": result["seconds"],
        }

    return measure


def tagged(path: Path, name: str, most: int) -> Path:
    """Write the first examples of JSONL, or of CoNLL columns, as JSONL, which all contenders read."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = text.splitlines()
    else:
        sentences = [[line.split() for line in block.splitlines()] for block in text.split("\n\n") if block.strip()]
        examples = ({"tokens": [word for word, *_ in rows], "tags": [row[-1] for row in rows]} for rows in sentences)
        lines = [json.dumps(example, ensure_ascii=False) for example in examples]
    written = ROOT / ".bench" / f"tagged-{name}.jsonl"
    written.parent.mkdir(exist_ok=True)
    written.write_text("".join(line + "\n" for line in lines[: most or None]), encoding="utf-8")
    return written


def main(
    task: Literal["classify", "tag"],
    model: Path,
    train: Path,
    held_out: Path,
    rounds: int = 3,
    epochs: float = 1.0,
    rate: float = 5e-5,
    batch: int = 32,
    warmup: int = 5,
    most: int = 0,
    only: tuple[str, ...] = (),
) -> None:
    """Measure fine-tuning and write bench/results/finetune-TASK.json and .md.

    Args:
        task: What is learned: labels (files of text, tab, label) or tags (JSONL of tokens and tags, or CoNLL columns).
        model: A folder with a BERT and its tokenizer.
        train: Examples to learn from.
        held_out: Examples to score on.
        rounds: How often everyone is measured, each time with another seed.
        epochs: Readings of the examples.
        rate: Peak learning rate.
        batch: Examples a step.
        warmup: First steps that do not count towards the speed.
        most: Tagged examples that are read of each file, the first ones; 0: all.
        only: Contenders to measure, by name; none: all of them.
    """
    if task == "tag":
        train, held_out = tagged(train, "train", most), tagged(held_out, "held-out", most)
    files: list[object] = ["--model", model, "--train", train, "--held-out", held_out, "--warmup", warmup]
    contenders = {name: peer_contender(name, files, epochs, rate, batch) for name in PEERS}
    contenders[SHOAL] = shoal_contender(task, model, train, held_out, epochs, rate, batch, warmup)
    if unknown := set(only) - contenders.keys():
        raise SystemExit(f"no contender {sorted(unknown)}; there are {[*contenders]}")
    results = take_turns({name: contenders[name] for name in only or contenders}, rounds)
    best = max((median(results[name], "tokens_per_second") for name in PEERS if name in results), default=float("nan"))
    rows = []
    for name, ran in results.items():
        scores = [result["score"] for result in ran]
        deviation = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        rows.append(
            [
                name,
                shown(median(ran, "tokens_per_second")),
                shown(median(ran, "tokens_per_second") / best, "{:.2f} ×"),
                f"{statistics.mean(scores):.3f}{deviation}",
                shown(median(ran, "train_seconds"), "{:,.0f} s"),
                shown(median(ran[1:] or ran, "first_step_seconds"), "{:.1f} s"),
                shown(median(ran, "peak_memory_bytes") / 1e6, "{:,.0f} MB"),
            ]
        )
    what = {"classify": "labels", "tag": "named entities"}[task]
    notes = [
        f"Medians over {rounds} rounds of {epochs:g} epochs, a seed each; {batch} examples a step at {rate:g}, 2 threads."
    ]
    publish(f"finetune-{task}", f"Fine-tuning all weights on {what}, fp32", COLUMNS, rows, notes, results, script="finetune")


if __name__ == "__main__":
    tyro.cli(main)
