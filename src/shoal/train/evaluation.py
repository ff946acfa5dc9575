"""Held-out loss, over all ranks, and bits per byte; of a mixture, of each corpus too."""

import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from shoal.core.errors import CorpusError
from shoal.data.batches import evaluation_rows
from shoal.data.plan import HeldOut
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on the held-out text of each corpus; every rank reads its share and gets the whole result."""

    task: Task
    held_out: dict[str, HeldOut]
    batch: int
    wire: Wire
    data: Axis
    precision: AbstractContextManager[None]
    sequences: int = 0
    final_sequences: int = 0

    @torch.no_grad()
    def __call__(self, model: Transformer, *, final: bool = True) -> dict[str, Any]:
        """`eval_loss` in nats a token, `eval_bpb` in bits a byte of text, `eval_targets`, and `eval_seconds`, its time.

        Of several corpora, over all their text, and `eval_loss/NAME` of each.
        """
        world, began = self.wire.world, time.perf_counter()
        totals = torch.zeros(len(self.held_out), 2, dtype=torch.float64, device=world.device)
        training = model.training
        model.eval()
        limit = -(-(self.final_sequences if final else self.sequences) // len(self.held_out))
        # eager: compiling forward without gradients would take longer than most evaluations
        with torch.compiler.set_stance("force_eager"):
            for total, held_out in zip(totals, self.held_out.values(), strict=True):
                for sequences in evaluation_rows(held_out.rows, self.batch, self.data.rank, self.data.size, limit):
                    with self.precision:
                        loss_sum, count = self.task.loss(model, self.task.batch(sequences, world.device))
                    total += torch.stack((loss_sum.double(), count.double()))
        model.train(training)
        found = self._result(self.wire.sum(totals, self.data).tolist())
        return found | {"eval_seconds": time.perf_counter() - began}

    def _result(self, totals: list[list[float]]) -> dict[str, Any]:
        """From (summed loss, targets) of each corpus."""
        losses = {name: loss / count for name, (loss, count) in zip(self.held_out, totals, strict=True) if count}
        if not losses:
            raise CorpusError("the held-out split has no targets to evaluate on")
        count = sum(count for _, count in totals)
        bits = sum(loss / math.log(2) * self.held_out[name].rows.targets for name, loss in losses.items())
        result = {
            "eval_loss": sum(loss for loss, _ in totals) / count,
            "eval_bpb": bits / sum(self.held_out[name].bytes for name in losses),  # of all text, as its targets are known
            "eval_targets": int(count),
        }
        each = {f"eval_loss/{name}": loss for name, loss in losses.items()} if len(self.held_out) > 1 else {}
        return {**result, **each}
