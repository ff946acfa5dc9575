"""Held-out loss, over all ranks, and bits per byte."""

import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from shoal.core.errors import CorpusError
from shoal.data.batches import evaluation_windows
from shoal.data.shards import TokenStream
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on a split; every rank reads its share and gets the whole result."""

    task: Task
    stream: TokenStream
    context: int
    batch: int
    wire: Wire
    data: Axis
    precision: AbstractContextManager[None]
    sequences: int = 0
    final_sequences: int = 0

    @torch.no_grad()
    def __call__(self, model: Transformer, *, final: bool = True) -> dict[str, Any]:
        """`eval_loss` in nats a token, `eval_bpb` in bits a byte of text, `eval_targets`, and `eval_seconds`, its time."""
        world, began = self.wire.world, time.perf_counter()
        total = torch.zeros(2, dtype=torch.float64, device=world.device)
        training = model.training
        model.eval()
        limit = self.final_sequences if final else self.sequences
        batches = evaluation_windows(self.stream, self.context, self.batch, self.data.rank, self.data.size, limit)
        # eager: compiling forward without gradients would take longer than most evaluations
        with torch.compiler.set_stance("force_eager"):
            for sequences in batches:
                with self.precision:
                    loss_sum, count = self.task.loss(model, self.task.batch(sequences, world.device))
                total += torch.stack((loss_sum.double(), count.double()))
        model.train(training)
        loss_sum, count = self.wire.sum(total, self.data).tolist()
        if not count:
            raise CorpusError("the held-out split has no targets to evaluate on")
        loss = loss_sum / count
        found = {"eval_loss": loss, "eval_bpb": bits_per_byte(loss, self.stream), "eval_targets": int(count)}
        return found | {"eval_seconds": time.perf_counter() - began}


def bits_per_byte(loss: float, stream: TokenStream) -> float:
    """Nats a token to bits a byte, by the split's targets (all tokens but the first) a byte."""
    return loss / math.log(2) * (stream.tokens - 1) / stream.bytes
