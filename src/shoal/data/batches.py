"""Rows of tokens for training and evaluation, step by step.

What a row is, a window of the text, packed documents or one, is a matter of `data.rows`, and which rows come when of
`data.order`. Here ranks divide the positions of a step, and what they read is entered into the ledger. Reading 16 rows of
256 tokens from a memory map takes about a millisecond, so there is no thread for it; whoever waits for a GPU may read ahead.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from shoal.core.errors import CorpusError
from shoal.data.batch_sizes import BatchSizes
from shoal.data.ledger import Ledger, Recorder, ledger_from, ledger_tree
from shoal.data.order import Order
from shoal.data.partition import Positions, rank_positions
from shoal.data.rows import Rows, empty_rows
from shoal.data.sequences import Sequences, joined, row_keys

_Read = tuple[Positions, Positions, Sequences]
"""A micro-batch: its sequences' positions, which samples they are, and they."""


@dataclass(frozen=True)
class _Step:
    """What a rank has read for the step of `size` sequences at `position`, of which some rank has `most` micro-batches."""

    position: int
    size: int
    most: int
    read: list[_Read]


class TrainingBatches:
    """This rank's rows, step by step; its whole state is the run's position, and the ledger of how it came there."""

    def __init__(
        self,
        rows: Rows,
        order: Order,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        strategy: Literal["interleaved", "blocks"] = "interleaved",
        sizes: BatchSizes | None = None,
        virtual_shards: int = 0,
    ) -> None:
        """`sizes`: of steps, where they are not all `global_batch`; `virtual_shards`: micro-batches of each, over all ranks,
        where their number is fixed and not their size.
        """
        self.sizes, self.virtual_shards = sizes or BatchSizes.constant(global_batch), virtual_shards
        self.sizes.check_ranks(world)
        self.rows, self.order = rows, order
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world, self.strategy = rank, world, strategy
        self.position = 0
        self._ahead: _Step | None = None
        ledger = Ledger(
            order.seed, order.samples, rows.context, rows.fingerprint, group=order.group, mixture=order.mixture,
            pool=order.pool,
        )  # fmt: skip
        self.recorder = Recorder(ledger, global_batch, strategy, rank, world)

    def next_step(self) -> list[tuple[int, Sequences]]:
        """The micro-batches of the next step: the position of the first sequence, and up to `micro_batch` of them.

        They are as many on every rank: one whose share is the smaller may end with one that has no targets, as ranks that
        gather weights do so together.
        """
        step, self._ahead = self._ahead, None
        if step is None or step.position != self.position:
            step = self._read_step()
        self.recorder.begin_step(step.size)
        for positions, samples, _ in step.read:
            self.recorder.enter(positions, samples)
        self.recorder.end_step()
        self.position += step.size
        micro_batches = [(int(positions[0]), sequences) for positions, _, sequences in step.read]
        if len(micro_batches) < step.most:
            micro_batches.append((micro_batches[0][0], empty_rows(micro_batches[0][1], 1)))
        return micro_batches

    def read_ahead(self) -> None:
        """Read what `next_step` will give; where that fails, it will fail there, if these rows are needed at all."""
        with suppress(CorpusError, OSError):
            self._ahead = self._ahead or self._read_step()

    def _read_step(self) -> _Step:
        batch = self.sizes.at(self.position)
        positions = rank_positions(self.position, batch, self.rank, self.world, self.strategy)
        samples = self.order.at(positions).samples
        most = -(-batch // self.world)
        size = batch // self.virtual_shards if self.virtual_shards else self.micro_batch or most
        slices = [slice(start, start + size) for start in range(0, len(samples), size)]
        read = [self._read(positions[part], samples[part]) for part in slices]
        return _Step(self.position, batch, -(-most // size), read)

    def _read(self, positions: Positions, samples: Positions) -> _Read:
        keys = row_keys(self.order.seed, self.order.epochs(positions), samples)
        return positions, samples, self.rows.read(samples, keys)

    def close(self, step: int, gather: Callable[[Any], list[Any]]) -> Ledger:
        """What all ranks have read by the end of `step`; all call it, and `gather` collects a value of each data rank."""
        self.recorder.close(step, gather)
        return self.recorder.ledger

    def state_dict(self) -> dict[str, Any]:
        """Where to go on, at any number of ranks, and what was read on the way."""
        ledger = ledger_tree(self.recorder.ledger)
        return {"position": self.position, "samples": self.order.samples, "seed": self.order.seed, "ledger": ledger}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; `CorpusError` when that order of samples is not this one, or of another text.

        Rows stay grouped as the run began, whatever the global batch is now; of a mixture, the future may be another.
        """
        mine = self.state_dict()
        for key, meaning in (("samples", "windows in its corpus"), ("seed", "as its seed")):
            if state[key] != mine[key]:
                raise CorpusError(
                    f"the checkpoint has {state[key]} {meaning}, this run {mine[key]}: samples would be repeated and "
                    "skipped. Go on with the corpus, the context, the kind of rows and the seed that the run began with"
                )
        fresh = self.recorder.ledger
        # a run from before there were ledgers goes on too; its ledger will say from where
        ledger = ledger_from(state["ledger"], "the checkpoint's ledger") if "ledger" in state else fresh
        if (ledger.corpus, ledger.context) != (fresh.corpus, fresh.context):
            raise CorpusError(
                "the checkpoint has read another text than this corpus holds, or in rows that are cut in another way: "
                "samples would be repeated and skipped. Go on with the corpus, the context and the kind of rows that the "
                "run began with"
            )
        self.position, self._ahead = state["position"], None
        self.order = ledger.order.going_on(fresh.order, self.position)
        self.recorder.go_on_from(replace(ledger, position=self.position, mixture=self.order.mixture))


def evaluation_rows(rows: Rows, batch: int, rank: int = 0, world: int = 1, limit: int = 0) -> Iterator[Sequences]:
    """This rank's share of a split's rows, each once.

    Ranks take whole batches in turn, as many each. These are always full, padded with -1, so that compiled code sees few
    shapes. `limit` rows at most (0: all), spread evenly over the split.
    """
    samples = np.arange(rows.samples, dtype=np.int64)
    if 0 < limit < len(samples):
        samples = samples[np.linspace(0, len(samples) - 1, limit).astype(np.int64)]
    for first in range(rank * batch, rank * batch + len(samples), world * batch):
        chosen = samples[first : first + batch]
        if not len(chosen):  # as many batches on every rank
            yield empty_rows(rows.read(samples[:1], np.zeros(1, dtype=np.uint64)), batch)
            continue
        read = rows.read(chosen, row_keys(0, np.zeros_like(chosen), chosen))
        yield joined([read, empty_rows(read, batch - len(read))])
