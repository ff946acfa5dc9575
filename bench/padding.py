"""What share of the positions that a fine-tuning computes holds a token: examples in random order, and grouped by length.

    python bench/padding.py --model MINILM --data sst2/train.tsv

Exact counts over an epoch in batches of 32, by the classes that fine-tuning reads its batches with; nothing is trained.
Prints the table of docs/finetuning.md.
"""

import argparse
from pathlib import Path

import numpy as np

from shoal.core.recipe_file import build_recipe
from shoal.data.batches import TrainingBatches
from shoal.data.examples.rows import Layout
from shoal.data.order import Order
from shoal.train.finetune import examine, order_of

BATCH = 32


def main() -> None:
    """Print a row for each layout, order and number of ranks."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--data", nargs="+", required=True)
    given = options.parse_args()
    recipe = build_recipe(
        {
            "task": "classify",
            "model": {"init_from": str(given.model), "preset": ""},
            "examples": {"train": given.data},
            "train": {"global_batch": BATCH, "epochs": 1.0},
        }
    )
    examined = examine(recipe)
    print("| rows | order | ranks | positions real |\n| --- | --- | ---: | ---: |")
    layouts: list[tuple[Layout, str]] = [("padded", "random"), ("padded", "by length"), ("joined", "random")]
    for layout, order in layouts:
        encoded = examined.train.by_length() if order == "by length" else examined.train
        rows = encoded.rows(examined.base, layout)
        followed = order_of(recipe, rows) if order == "by length" else Order(recipe.seed, rows.samples)
        for ranks in (1, 2):
            real = positions = 0
            for rank in range(ranks):
                batches = TrainingBatches(rows, followed, BATCH, 0, rank, ranks)
                for _ in range(rows.samples // BATCH):
                    for _, sequences in batches.next_step():
                        real += int(np.count_nonzero(sequences.tokens >= 0))
                        positions += sequences.tokens.size
            print(f"| {layout} | {order} | {ranks} | {real / positions:.1%} |", flush=True)


if __name__ == "__main__":
    main()
