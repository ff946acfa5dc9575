"""Padded rows of examples: a step's are of about one length, the same at every world size, and others meet in each epoch."""

import random

import numpy as np
import pytest

from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe
from shoal.data.batches import TrainingBatches
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows, Layout, Piece
from shoal.data.ledger import ledger_from, ledger_tree
from shoal.data.order import Order
from shoal.train.encoded import Encoded
from shoal.train.finetune import order_of

COUNT, BATCH = 1000, 16
RECIPE: Recipe = build_recipe({"task": "classify", "train": {"global_batch": BATCH}})


def encoded() -> Encoded:
    """Examples of two to fifty tokens, the number of the first of which says which one it is."""
    choose = random.Random(1)
    samples = [(Piece(np.full(choose.randint(2, 50), number, dtype=np.int64)),) for number in range(COUNT)]
    return Encoded([Example({}, f"f:{number}") for number in range(COUNT)], samples, list(range(COUNT)))


def rows_of(given: Encoded, layout: Layout = "padded") -> LabelledRows:
    return LabelledRows(given.samples, causal=False, layout=layout)


def steps_of(rows: LabelledRows, order: Order, world: int = 1, steps: int = COUNT // BATCH) -> tuple[list[set[int]], float]:
    """(examples of each step, the share of positions that hold a token)."""
    ranks = [TrainingBatches(rows, order, BATCH, 0, rank, world) for rank in range(world)]
    read, real, positions = [], 0, 0
    for _ in range(steps):
        tokens = [sequences.tokens for rank in ranks for _, sequences in rank.next_step()]
        real += sum(int((part >= 0).sum()) for part in tokens)
        positions += sum(part.size for part in tokens)
        read.append({int(number) for part in tokens for number in part[:, 0] if number >= 0})
    return read, real / positions


def test_little_is_padding_and_every_world_size_reads_the_same() -> None:
    rows = rows_of(encoded().by_length())
    order = order_of(RECIPE, rows)
    read, real = steps_of(rows, order)
    _, shuffled = steps_of(rows_of(encoded()), Order(RECIPE.seed, COUNT))
    assert real > 0.85 > 0.55 > shuffled
    assert set().union(*read) <= set(range(COUNT)) and sum(map(len, read)) == COUNT // BATCH * BATCH
    for world in (2, 3):
        assert steps_of(rows, order, world)[0] == read
    another = build_recipe({"task": "classify", "seed": 2, "train": {"global_batch": BATCH}})
    assert steps_of(rows, order_of(another, rows))[0] != read


def test_examples_meet_others_in_every_epoch() -> None:
    rows = rows_of(encoded().by_length())
    read, _ = steps_of(rows, order_of(RECIPE, rows), steps=2 * (COUNT // BATCH))
    first, second = read[: COUNT // BATCH], read[COUNT // BATCH + 1 :]
    together = {frozenset(pair) for step in first for pair in zip(sorted(step), sorted(step)[1:], strict=False)}
    again = {frozenset(pair) for step in second for pair in zip(sorted(step), sorted(step)[1:], strict=False)}
    assert len(together & again) < 0.2 * len(together)


def test_sorting_keeps_each_sample_with_its_example() -> None:
    given = encoded().by_length()
    lengths = [len(piece.tokens) for (piece,) in given.samples]
    assert lengths == sorted(lengths)
    assert [int(piece.tokens[0]) for (piece,) in given.samples] == given.owners


def test_joined_rows_keep_their_random_order_and_a_ledger_tells_the_order_again() -> None:
    rows = rows_of(encoded(), "joined")
    assert order_of(RECIPE, rows) == Order(RECIPE.seed, COUNT)
    padded = rows_of(encoded().by_length())
    batches = TrainingBatches(padded, order_of(RECIPE, padded), BATCH, 0)
    batches.next_step()
    ledger = batches.close(1, lambda share: [share])
    assert ledger_from(ledger_tree(ledger), "here").order == order_of(RECIPE, padded)
    assert order_of(RECIPE, padded).pool == pytest.approx(COUNT / BATCH / 4, abs=1)
