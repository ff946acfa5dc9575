"""What a task measures on held-out text, over all ranks."""

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
        """The task's metrics: `eval_loss` in nats a target, `eval_targets`, and what it has beside."""
        world = self.wire.world
        training = model.training
        model.eval()
        limit = self.final_sequences if final else self.sequences
        batches = evaluation_windows(self.stream, self.context, self.batch, self.data.rank, self.data.size, limit)
        totals: dict[str, torch.Tensor] = {}
        # eager: compiling forward without gradients would take longer than most evaluations
        with torch.compiler.set_stance("force_eager"):
            for sequences in batches:
                with self.precision:
                    sums = self.task.sums(model, self.task.batch(sequences, world.device))
                totals = {name: totals.get(name, 0) + value.double() for name, value in sums.items()}
        model.train(training)
        whole = self.wire.sum(torch.stack(list(totals.values())), self.data).tolist()
        result = dict(zip(totals, whole, strict=True))
        if not result["count"]:
            raise CorpusError("the held-out split has no targets to evaluate on")
        return self.task.metrics(result, self.stream)
