"""What saving costs training: the steps while a checkpoint is written in the background, beside steps without one.

The demo's model trains on, and every so many steps it is saved. What a save stalls is its call, of which copying to memory
is told apart, and what the writer takes from the step that follows: how much slower it is than the undisturbed ones' median.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from report import ROOT, Result, publish, run_json, shoal_command
from shoal.core.recipe_file import read_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import join
from shoal.train import checkpoint
from shoal.train.loop import train
from shoal.train.setup import build
from shoal.train.telemetry import read_metrics

COLUMNS = ["", "of an undisturbed step"]


class TimedCheckpoints(checkpoint.Checkpoints):
    """Notes how long the call takes, and copying alone."""

    calls: list[float]
    copies: list[float]

    def save(self, snapshot: checkpoint.Snapshot) -> None:
        self.wait()
        began = time.perf_counter()
        copied = [part.values.detach().to("cpu", copy=True) for parts in snapshot.parts.values() for part in parts.values()]
        self.copies.append(time.perf_counter() - began)
        del copied
        began = time.perf_counter()
        super().save(snapshot)
        self.calls.append(time.perf_counter() - began)


def measure(recipe: Path, corpus: Path, steps: int, every: int) -> Result:
    keys = ["--data.directory", str(corpus), "--train.minutes", "0", "--train.steps", str(steps), "--evaluation.every", "0"]
    chosen = read_recipe(recipe, [*keys, "--checkpoint.every", str(every), "--evaluation.final_sequences", "16"])
    with join("cpu") as world, TemporaryDirectory(dir=ROOT / ".bench") as folder:
        parts, _ = build(chosen, RunDirectory(Path(folder)), world, quiet=True)
        timed = TimedCheckpoints(parts.checkpoints.folder, 1)
        timed.calls, timed.copies = [], []
        train(dataclasses.replace(parts, checkpoints=timed))
        parts.telemetry.close()
        lines, _ = read_metrics(RunDirectory(Path(folder)).metrics)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    seconds = [line["step_seconds"] for line in lines]
    after = [seconds[step] for step in range(every, steps, every)]
    undisturbed = [seconds[step] for step in range(3, steps) if step % every > every // 2]
    return {
        "step": statistics.median(undisturbed),
        "after": after,
        "calls": timed.calls,
        "copies": timed.copies,
        "bytes": size,
    }


def main(steps: int = 121, every: int = 10, recipe: Path = ROOT / "recipes" / "gpt-demo.yaml") -> None:
    """Measure and write bench/results/checkpoint.json and checkpoint.md.

    Args:
        steps: Optimizer steps.
        every: Steps between checkpoints.
        recipe: What to train.
    """
    corpus = ROOT / "data" / recipe.stem
    run_json(shoal_command("prepare", recipe, "--data.directory", corpus, "--json"))
    found = measure(recipe, corpus, steps, every)
    step = found["step"]
    call, copy, after = (statistics.median(found[key]) for key in ("calls", "copies", "after"))
    rows = [
        ["copying to memory", f"{copy / step:.1%}"],
        ["the rest of the call", f"{max(0.0, call - copy) / step:.1%}"],
        ["slowing of the next step by the writer", f"{after / step - 1:.1%}"],
    ]
    notes = [
        f"An undisturbed step takes {step * 1e3:.0f} ms; medians over {len(found['calls'])} checkpoints of "
        f"{found['bytes'] / 1e6:.0f} MB."
    ]
    publish("checkpoint", "What a checkpoint stalls", COLUMNS, rows, notes, {"demo": [found]})


if __name__ == "__main__":
    tyro.cli(main)
