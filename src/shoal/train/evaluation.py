"""What a task measures on held-out text, over all ranks; of a mixture, the loss on each corpus too."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from shoal.core.errors import CorpusError
from shoal.data.batches import evaluation_rows
from shoal.data.plan import HeldOut
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.tasks import TextTask


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on the held-out text of each corpus; every rank reads its share and gets the whole result."""

    task: TextTask
    held_out: dict[str, HeldOut]
    batch: int
    wire: Wire
    data: Axis
    precision: AbstractContextManager[None]
    sequences: int = 0
    final_sequences: int = 0

    @torch.no_grad()
    def __call__(self, model: Transformer, *, final: bool = True, loss_alone: bool = False, most: int = 0) -> dict[str, Any]:
        """The task's metrics: `eval_loss` in nats a target, `eval_targets`, what it has beside, and `eval_seconds`.

        `loss_alone` saves nothing here: all of it comes from one pass. `most`: sequences that are read, where the recipe's
        number is not meant. Of several corpora, over all their text, and `eval_loss/NAME` of each.
        """
        began = time.perf_counter()
        training = model.training
        model.eval()
        limit = -(-(most or (self.final_sequences if final else self.sequences)) // len(self.held_out))
        # eager: compiling forward without gradients would take longer than most evaluations
        with torch.compiler.set_stance("force_eager"):
            sums = {name: self._sums(model, number, limit) for number, name in enumerate(self.held_out)}
        model.train(training)
        return self._result(sums) | {"eval_seconds": time.perf_counter() - began}

    def _sums(self, model: Transformer, corpus: int, limit: int) -> dict[str, float]:
        """The task's sums over one corpus, by its number, and all ranks."""
        device, rows = self.wire.world.device, list(self.held_out.values())[corpus].rows
        totals: dict[str, torch.Tensor] = {}
        for sequences in evaluation_rows(rows, self.batch, self.data.rank, self.data.size, limit):
            sequences = replace(sequences, corpora=np.full(len(sequences), corpus))
            with self.precision:
                sums = self.task.sums(model, self.task.batch(sequences, device))
            totals = {name: totals.get(name, 0) + value.double() for name, value in sums.items()}
        whole = self.wire.sum(torch.stack(list(totals.values())), self.data).tolist()
        return dict(zip(totals, whole, strict=True))

    def _result(self, sums: dict[str, dict[str, float]]) -> dict[str, Any]:
        found = {name: part for name, part in sums.items() if part["count"]}
        if not found:
            raise CorpusError("the held-out split has no targets to evaluate on")
        result: dict[str, Any] = self.task.metrics([(part, self.held_out[name]) for name, part in found.items()])
        if len(self.held_out) > 1:
            result |= {f"eval_loss/{name}": part["loss"] / part["count"] for name, part in found.items()}
        return result
