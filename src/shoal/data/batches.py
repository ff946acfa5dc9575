"""Windows of tokens for training and evaluation.

Training reads consecutive windows of `context + 1` tokens of the concatenated documents, in shuffled order: every position
is real (no padding) and every token is a target once an epoch; the price is that a window may begin inside a document.
Reading 16 windows of 257 tokens from a memory map takes well under a millisecond, so nothing is prefetched.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from shoal.core.errors import CorpusError
from shoal.data.batch_sizes import BatchSizes
from shoal.data.ledger import Ledger, Recorder, ledger_from, ledger_tree
from shoal.data.partition import Positions, rank_positions, samples_at
from shoal.data.sequences import Sequences, row_keys
from shoal.data.shards import TokenStream


class TrainingBatches:
    """This rank's windows, step by step; its whole state is the run's position, and the ledger of how it came there."""

    def __init__(
        self,
        stream: TokenStream,
        context: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
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
        self.samples = (stream.tokens - 1) // context
        if self.samples < 1:
            raise CorpusError(f"the training split has {stream.tokens} tokens, too few for one window of {context + 1}")
        if self.sizes.smallest < world:
            key = "train.global_batch" if self.sizes.smallest == global_batch else "schedule.batch_start"
            raise CorpusError(f"{key} is {self.sizes.smallest}, less than one sequence for each of {world} ranks")
        self.stream, self.context, self.seed = stream, context, seed
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world, self.strategy = rank, world, strategy
        self.position = 0
        ledger = Ledger(seed, self.samples, context, stream.fingerprint)
        self.recorder = Recorder(ledger, global_batch, strategy, rank, world)

    def next_step(self) -> list[tuple[int, Sequences]]:
        """The micro-batches of the next step: the position of the first sequence, and up to `micro_batch` of them.

        They are as many on every rank: one whose share is the smaller may end with one that has no targets, as ranks that
        gather weights do so together.
        """
        batch = self.sizes.at(self.position)
        self.recorder.begin_step(batch)
        positions = rank_positions(self.position, batch, self.rank, self.world, self.strategy)
        self.position += batch
        samples = samples_at(positions, self.samples, self.seed)
        most = -(-batch // self.world)
        size = batch // self.virtual_shards if self.virtual_shards else self.micro_batch or most
        none = Sequences.of_windows(np.full((1, self.context + 1), -1, dtype=np.int64))
        micro_batches = [
            (int(positions[start]), self._read(positions[start : start + size], samples[start : start + size]))
            if start < len(samples)
            else (int(positions[0]), none)
            for start in range(0, most, size)
        ]
        self.recorder.end_step()
        return micro_batches

    def _read(self, positions: Positions, samples: Positions) -> Sequences:
        self.recorder.enter(positions, samples)
        windows = self.stream.windows(samples * self.context, self.context + 1)
        return Sequences.of_windows(windows, row_keys(self.seed, positions // self.samples, samples))

    def close(self, step: int, gather: Callable[[Any], list[Any]]) -> Ledger:
        """What all ranks have read by the end of `step`; all call it, and `gather` collects a value of each data rank."""
        self.recorder.close(step, gather)
        return self.recorder.ledger

    def state_dict(self) -> dict[str, Any]:
        """Where to go on, at any number of ranks, and what was read on the way."""
        ledger = ledger_tree(self.recorder.ledger)
        return {"position": self.position, "samples": self.samples, "seed": self.seed, "ledger": ledger}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; `CorpusError` when that order of samples is not this one, or of another text."""
        mine = self.state_dict()
        for key, meaning in (("samples", "windows in its corpus"), ("seed", "as its seed")):
            if state[key] != mine[key]:
                raise CorpusError(
                    f"the checkpoint has {state[key]} {meaning}, this run {mine[key]}: samples would be repeated and "
                    "skipped. Go on with the corpus, the context and the seed that the run began with"
                )
        fresh = self.recorder.ledger
        # a run from before there were ledgers goes on too; its ledger will say from where
        ledger = ledger_from(state["ledger"], "the checkpoint's ledger") if "ledger" in state else fresh
        if (ledger.corpus, ledger.context) != (fresh.corpus, fresh.context):
            raise CorpusError(
                "the checkpoint has read another text than this corpus holds, or in windows of another length: samples "
                "would be repeated and skipped. Go on with the corpus and the context that the run began with"
            )
        self.position = state["position"]
        self.recorder.go_on_from(replace(ledger, position=self.position))


def evaluation_windows(
    stream: TokenStream, context: int, batch: int, rank: int = 0, world: int = 1, limit: int = 0
) -> Iterator[Sequences]:
    """This rank's share of the split, cut without overlap: every token but the first is a target exactly once.

    Ranks take whole batches in turn, as many each. These are always full, padded with -1, so that compiled code sees one
    shape. `limit`
    sequences at most (0: all), spread evenly over the split.
    """
    starts = np.arange(0, stream.tokens - 1, context, dtype=np.int64)
    if not len(starts):
        raise CorpusError(f"the held-out split has {stream.tokens} tokens, too few to evaluate on")
    if 0 < limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    for first in range(rank * batch, rank * batch + len(starts), world * batch):
        chosen = starts[first : first + batch]
        windows = np.full((batch, context + 1), -1, dtype=np.int64)
        whole = chosen[chosen + context + 1 <= stream.tokens]
        windows[: len(whole)] = stream.windows(whole, context + 1)
        for row, start in enumerate(chosen[len(whole) :], len(whole)):
            rest = stream.windows(np.array([start]), stream.tokens - int(start))
            windows[row, : rest.shape[1]] = rest[0]
        keys = np.zeros(batch, dtype=np.uint64)
        keys[: len(chosen)] = row_keys(0, np.zeros_like(chosen), chosen)
        yield Sequences.of_windows(windows, keys)
