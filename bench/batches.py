"""What each kind of rows makes of a corpus: how many positions hold a token, how often texts are cut, what reading costs.

    python bench/batches.py data/demo data/notes --context 256 1024

Prints the table of docs/batches.md. Shares are exact counts, or over 4,096 steps of a longer epoch; only the last column
depends on the machine.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from shoal.core.recipe import Data, Recipe, Train
from shoal.data.batches import TrainingBatches
from shoal.data.order import Order
from shoal.data.pieces import CutDocuments
from shoal.data.plan import Plan, plan_training
from shoal.data.sequences import Framing
from shoal.data.shards import Corpus

BATCH, MICRO_BATCH, RANKS = 32, 8, 2
STEPS_READ = 200


def main() -> None:
    """Print a row for each corpus, context and kind of rows."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("corpora", nargs="+", type=Path)
    options.add_argument("--context", nargs="+", type=int, default=[256, 1024])
    given = options.parse_args()
    print("| corpus | context | rows | number | positions real | documents cut | read, ms CPU a step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder in given.corpora:
        corpus = Corpus.open(folder)
        for context in given.context:
            for kind in ("stream", "padded", "grouped", "packed"):
                columns = [folder.name, f"{context:,}", kind, *measure(corpus, context, kind)]
                print(f"| {' | '.join(columns)} |", flush=True)


def measure(corpus: Corpus, context: int, kind: str) -> list[str]:
    """The columns of one row; `padded` are the rows of `grouped`, in random order."""
    data = Data(rows="grouped" if kind == "padded" else kind)  # type: ignore[arg-type]
    recipe = Recipe(data=data, train=Train(steps=1, global_batch=BATCH, micro_batch=MICRO_BATCH))
    plan = plan_training(recipe, [corpus], context, Framing(), lambda tokens: None)
    if kind == "padded":
        plan = Plan(plan.rows, Order(recipe.seed, plan.rows.samples))
    batches = TrainingBatches(plan.rows, plan.order, BATCH, MICRO_BATCH, 0, RANKS)
    batches.next_step()
    began = time.process_time()
    for _ in range(STEPS_READ):
        batches.next_step()
    milliseconds = (time.process_time() - began) / STEPS_READ * 1000
    real = plan.real_share(BATCH, MICRO_BATCH, RANKS)
    return [f"{plan.rows.samples:,}", f"{real:.2%}", f"{cut_share(corpus, context, kind):.1%}", f"{milliseconds:.2f}"]


def cut_share(corpus: Corpus, context: int, kind: str) -> float:
    """Share of the documents that lie in more rows than one."""
    cut = CutDocuments.of(corpus.split("train"), corpus.end_of_text, context, Framing())
    if kind == "stream":
        ends = np.append(cut.starts[1:], cut.stream.tokens) - 1  # its end-of-text; windows are of targets, from token 1 on
        return float(np.mean(np.maximum(cut.starts - 1, 0) // context != (ends - 1) // context))
    pieces = np.diff(cut.full_before) + (cut.rests > 0)
    return float(np.mean(pieces > 1))


if __name__ == "__main__":
    main()
