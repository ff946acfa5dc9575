"""What a labelled task's predictions on held-out examples are worth, over all ranks; and the predictions, in a file."""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.core.files import write_text
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows
from shoal.data.rows import empty_rows
from shoal.data.sequences import Sequences
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.tasks import LabelledTask


@dataclass(frozen=True)
class LabelledSplit:
    """`name` stands before its figures; `owners`: of which example each sample is."""

    name: str
    examples: list[Example]
    owners: list[int]
    rows: LabelledRows


@dataclass(frozen=True)
class LabelledEvaluator:
    """Evaluates a model on labelled examples; every rank predicts its share, and gets the whole result.

    In mid-run it reads the first split alone, `limit` of its examples (0: all); at the end all splits, and the main rank
    writes the predictions on the last of them to `predictions`, a JSON object a line.
    """

    task: LabelledTask
    splits: list[LabelledSplit]
    batch: int
    wire: Wire
    data: Axis
    precision: AbstractContextManager[None]
    limit: int = 0
    predictions: Path | None = None

    @torch.no_grad()
    def __call__(self, model: Transformer, *, final: bool = True, loss_alone: bool = False, most: int = 0) -> dict[str, Any]:
        """`eval_loss` in nats a target, `eval_targets`, the task's figures under `eval_…` and `test_…`, `eval_seconds`.

        `loss_alone`: of the first split, without predictions. `most`: examples that are read of a split (0: all).
        """
        began = time.perf_counter()
        training = model.training
        model.eval()
        # eager: compiling forward without gradients would take longer than most evaluations
        with torch.compiler.set_stance("force_eager"):
            found: dict[str, Any] = {}
            for split in self.splits if final and not loss_alone else self.splits[:1]:
                found |= self._measured(model, split, final, loss_alone, most)
        model.train(training)
        return found | {"eval_seconds": time.perf_counter() - began}

    def _measured(
        self, model: Transformer, split: LabelledSplit, final: bool, loss_alone: bool, most: int
    ) -> dict[str, Any]:
        count = min(most or (0 if final else self.limit) or len(split.examples), len(split.examples))
        everyone = self.wire.gather_objects(self._read(model, split, count, final, loss_alone))
        # tensor ranks have predicted the same
        told = everyone[:: len(everyone) // self.data.size]
        names = dict.fromkeys(name for its, _ in told for name in its)
        sums_of_all = {name: sum(its.get(name, 0.0) for its, _ in told) for name in names}
        measured: dict[str, Any] = self.task.figures(sums_of_all)
        if not loss_alone:
            outputs_of: list[list[Any]] = [[] for _ in range(count)]
            for sample, output in sorted((pair for _, share in told for pair in share), key=lambda pair: pair[0]):
                outputs_of[split.owners[sample]].append(output)
            measured |= self._predicted(split, split.examples[:count], outputs_of, final)
        return {f"{split.name}_{name}": value for name, value in measured.items()}

    def _read(
        self, model: Transformer, split: LabelledSplit, count: int, final: bool, loss_alone: bool
    ) -> tuple[dict[str, float], list[tuple[int, Any]]]:
        """(the task's sums over this rank's share of the first `count` examples, what predictions are made of by sample)."""
        chosen = [number for number, owner in enumerate(split.owners) if owner < count]
        totals: dict[str, float] = {}
        mine: list[tuple[int, Any]] = []
        for sequences in self._batches(split.rows, np.array(chosen, dtype=np.int64)):
            with self.precision:
                batch = self.task.batch(sequences, self.wire.world.device)
                assert batch.pieces is not None
                if loss_alone:
                    sums = self.task.sums(model, batch)
                else:
                    sums, outputs = self.task.evaluated(model, batch, final)
                    mine += zip(batch.pieces.samples, outputs, strict=True)
            totals |= {name: totals.get(name, 0.0) + value.item() for name, value in sums.items()}
        return totals, mine

    def _predicted(
        self, split: LabelledSplit, examples: list[Example], outputs_of: list[list[Any]], final: bool
    ) -> dict[str, Any]:
        """What the predictions are worth; at the end they are judged, and, of the last split, written."""
        predictions = self.task.predict(examples, outputs_of)
        if final:
            predictions = self._judged(examples, predictions)
        if final and split is self.splits[-1] and self.predictions is not None and self.wire.world.is_main:
            write_predictions(self.predictions, examples, predictions)
        return self.task.measure(examples, predictions) if any(predictions) else {}

    def _judged(self, examples: list[Example], predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predictions with what takes time to find out, of which each rank does a share."""
        ranks = self.wire.world.size
        numbers = range(self.wire.world.rank, len(examples), ranks)
        shares = self.wire.gather_objects([self.task.judged(examples[number], predictions[number]) for number in numbers])
        return [shares[number % ranks][number // ranks] for number in range(len(examples))]

    def _batches(self, rows: LabelledRows, samples: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Sequences]:
        """This rank's share, in batches of samples of about one length; as many on every rank, which may gather weights."""
        ordered = samples[np.argsort(rows.lengths(samples), kind="stable")]
        mine = ordered[self.data.rank :: self.data.size]
        most = -(-len(ordered) // self.data.size)
        for start in range(0, most, self.batch):
            chosen = mine[start : start + self.batch]
            share = chosen if len(chosen) else ordered[:1]
            read = rows.read(share, np.zeros(len(share), dtype=np.uint64))
            yield read if len(chosen) else empty_rows(read, 1)


def write_predictions(path: Path, examples: list[Example], predictions: list[dict[str, Any]]) -> None:
    """One line an example: where it stands, what it holds, and what was predicted."""
    lines = (
        json.dumps({"where": example.where, **example.values, "prediction": prediction}, ensure_ascii=False, default=str)
        for example, prediction in zip(examples, predictions, strict=True)
    )
    write_text(path, "".join(line + "\n" for line in lines))
