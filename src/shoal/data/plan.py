"""From a recipe's `data` to what training and evaluation read: the rows of each split, and the order of a run.

    rows                real positions    documents                       a step's tokens
    stream              all               joined, cut at row ends         as many
    packed              99.9% and more    cut only where longer than a row   nearly as many
    grouped             95 to 99%         as packed, one a row            differ

(measured by `shoal pretrain --dry-run`; docs/batches.md has a table.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shoal.core.errors import CorpusError, RecipeError
from shoal.core.recipe import Recipe
from shoal.data.batch_sizes import BatchSizes
from shoal.data.grouping import GroupedRows
from shoal.data.mixture import Mixture, weights_by_size, whole_weights
from shoal.data.order import Order
from shoal.data.packing import PackedRows
from shoal.data.partition import rank_positions
from shoal.data.pieces import CutDocuments
from shoal.data.rows import MixedRows, Rows, StreamRows
from shoal.data.sequences import Framing
from shoal.data.shards import Corpus, Split

STEPS_MEASURED = 4096
"""Steps, evenly spread over an epoch, whose padding is counted, at most."""


@dataclass(frozen=True)
class Plan:
    """What a run reads: rows of its training text, in which order, and how many a step."""

    rows: Rows
    order: Order
    sizes: BatchSizes

    @property
    def tokens_per_row(self) -> float:
        """Real tokens of a row, on average; of a mixture, in the run's first stage."""
        if self.order.mixture is None or not isinstance(self.rows, MixedRows):
            return self.rows.tokens / self.rows.samples
        means = [part.tokens / part.samples for part in self.rows.parts]
        return float(np.average(means, weights=self.order.mixture.stages[0].weights))

    def real_share(
        self, global_batch: int, micro_batch: int, world: int = 1, strategy: Literal["interleaved", "blocks"] = "interleaved"
    ) -> float:
        """Share of the positions that models compute which hold a token, in batches like these.

        Raises `CorpusError` for more ranks than a step has sequences.
        """
        self.sizes.check_ranks(world)
        steps = max(1, self.rows.samples // global_batch)
        chosen = np.unique(np.linspace(0, steps - 1, min(steps, STEPS_MEASURED)).astype(np.int64))
        positions = (chosen[:, None] * global_batch + np.arange(global_batch)).reshape(-1)
        lengths = self.rows.lengths(self.order.at(positions).samples).reshape(len(chosen), global_batch)
        computed = 0
        for rank in range(world):
            mine = lengths[:, rank_positions(0, global_batch, rank, world, strategy)]
            size = micro_batch or mine.shape[1]
            for start in range(0, mine.shape[1], size):
                together = mine[:, start : start + size]
                computed += int(together.max(1).sum()) * together.shape[1]
        return self.tokens_per_row * len(positions) / computed


@dataclass(frozen=True)
class HeldOut:
    """Rows to evaluate on, and the bytes of their text."""

    rows: Rows
    bytes: int


def open_corpora(recipe: Recipe) -> list[Corpus]:
    """The recipe's corpora; `CorpusError` when one is missing, or they were tokenized differently."""
    directories = [Path(directory) for directory in recipe.corpus_directories]
    names = [directory.name for directory in directories]
    if len(set(names)) < len(names):
        raise RecipeError(f"'data.mixture' has two corpora of one name ({', '.join(names)}): rename a folder")
    corpora = [Corpus.open(directory) for directory in directories]
    first = corpora[0]
    for other in corpora[1:]:
        if other.manifest["tokenizer_sha256"] != first.manifest["tokenizer_sha256"]:
            raise CorpusError(
                f"{other.directory} was prepared with another tokenizer than {first.directory}; prepare it anew with "
                f"--tokenizer.path {first.tokenizer_path}"
            )
    return corpora


def cut_rows(recipe: Recipe, corpus: Corpus, split: Split, context: int, framing: Framing) -> Rows:
    """The rows of one split, of the recipe's kind; held-out ones include what is left at the split's end."""
    stream, data = corpus.split(split), recipe.data
    try:
        if data.rows == "stream":
            border = corpus.end_of_text if data.borders else None
            return StreamRows(stream, context, border, partial=split == "held_out")
        cut = CutDocuments.of(stream, corpus.end_of_text, context, framing)
        return PackedRows(cut) if data.rows == "packed" else GroupedRows(cut)
    except CorpusError as error:
        raise CorpusError(f"{corpus.directory}, {split.replace('_', '-')} text: {error}") from None


def plan_training(
    recipe: Recipe,
    corpora: list[Corpus],
    context: int,
    framing: Framing,
    expected_steps: Callable[[BatchSizes, float], int | None],
) -> Plan:
    """What the recipe's run reads; the whole run is `expected_steps` of rows of so many tokens."""
    parts = tuple(cut_rows(recipe, corpus, "train", context, framing) for corpus in corpora)
    if len(parts) == 1:
        if recipe.data.weights:
            raise RecipeError("'data.weights' are those of a mixture: name its corpora in 'data.mixture', or leave them out")
        group = recipe.train.global_batch if recipe.data.rows == "grouped" else 0
        sizes = BatchSizes.of(recipe, parts[0].tokens / parts[0].samples)
        return Plan(parts[0], Order(recipe.seed, parts[0].samples, group), sizes)
    if recipe.data.rows == "grouped":
        raise RecipeError(
            "'data.rows' grouped is for one corpus: a step's rows are of one length, not of one mixture; take packed"
        )
    rows = MixedRows(parts)
    tokens = rows.tokens / rows.samples
    sizes = BatchSizes.of(recipe, tokens)
    stages = _stages(recipe, rows, sizes, expected_steps(sizes, tokens))
    names = tuple(corpus.directory.name for corpus in corpora)
    mixture = Mixture.of(names, tuple(part.samples for part in parts), stages)
    return Plan(rows, Order(recipe.seed, rows.samples, mixture=mixture), sizes)


def plan_evaluation(recipe: Recipe, corpora: list[Corpus], context: int, framing: Framing) -> dict[str, HeldOut]:
    """What an evaluation reads of each corpus, by its name."""
    return {
        corpus.directory.name: HeldOut(
            cut_rows(recipe, corpus, "held_out", context, framing), corpus.split("held_out").bytes
        )
        for corpus in corpora
    }


def _stages(recipe: Recipe, rows: MixedRows, sizes: BatchSizes, steps: int | None) -> list[tuple[int, tuple[int, ...]]]:
    """(first position, whole weights) of each stage of a mixture."""
    samples = tuple(part.samples for part in rows.parts)
    stages: list[tuple[int, tuple[int, ...]]] = []
    for line in recipe.data.weights or [[0.0, *weights_by_size(samples)]]:
        if len(line) != len(samples) + 1:
            raise RecipeError(
                f"'data.weights' has a line of {len(line)} numbers, {line}; it takes {len(samples) + 1}: where the stage "
                f"begins, and a weight for each of {', '.join(recipe.data.mixture)}"
            )
        begin = line[0]
        if not 0 <= begin < math.inf:
            raise RecipeError(
                f"'data.weights' has a stage that begins at {begin:g}: a share of the run, or a step, from 0 on"
            )
        if 0 < begin < 1 and steps is None:
            raise RecipeError(
                f"'data.weights' has a stage that begins at {begin:g} of a run whose length only the clock knows: set "
                "train.steps or train.tokens, or give the step where it begins"
            )
        step = round(begin * steps) if begin < 1 and steps is not None else round(begin)
        stages.append((sizes.position_after(step), whole_weights(line[1:])))
    starts = [start for start, _ in stages]
    if starts[0] != 0 or starts != sorted(set(starts)):
        raise RecipeError(
            f"'data.weights' has stages that begin at {', '.join(f'{line[0]:g}' for line in recipe.data.weights)}: the "
            "first begins at 0, and each later than the one before"
        )
    return stages
