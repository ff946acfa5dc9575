"""What is evaluated and written where a moving average of the weights is kept: the average."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.models.transformer import Transformer
from shoal.parallel.shards import Boxes
from shoal.parallel.sync import Sync
from shoal.train.checkpoint import Saved, of_copy
from shoal.train.optimizers import Optimizer
from shoal.train.optimizers.averaged import AVERAGE


@dataclass(frozen=True)
class AverageEvaluator:
    """Evaluates by `evaluate` both the weights, of which only the loss is wanted, as `eval_raw_loss`, and their average."""

    evaluate: Callable[..., dict[str, Any]]
    optimizer: Optimizer
    sync: Sync

    def __call__(self, model: Transformer, **how: Any) -> dict[str, Any]:
        """As `evaluate`."""
        raw = self.evaluate(model, **how, loss_alone=True)
        with averaged_weights(self.sync, self.optimizer):
            evaluated = self.evaluate(model, **how)
        both = raw["eval_seconds"] + evaluated["eval_seconds"]
        return evaluated | {"eval_raw_loss": raw["eval_loss"], "eval_seconds": both}


@contextmanager
def averaged_weights(sync: Sync, optimizer: Optimizer) -> Iterator[None]:
    """Inside, the model has the averages in place of its weights, however these are divided; over copies, their mean."""
    state = optimizer.state_dict()
    averages = {name: state[key] for name in sync.shards if (key := f"{name}/{AVERAGE}") in state}
    if not averages:  # no step was taken yet
        yield
        return
    values = [sync.shards[name].value for name in averages]
    own = [value.detach().clone() for value in values]
    _put(sync, values, _mean_over_copies(sync, list(averages.values())))
    try:
        yield
    finally:
        _put(sync, values, own)


@torch.no_grad()
def _put(sync: Sync, values: list[Any], others: list[Tensor]) -> None:
    with sync.changing_weights():
        for value, other in zip(values, others, strict=True):
            value.copy_(other)


def _mean_over_copies(sync: Sync, tensors: list[Tensor]) -> list[Tensor]:
    if sync.apart.size == 1:
        return tensors
    total = sync.wire.sum(torch.cat([tensor.flatten() for tensor in tensors]), sync.apart) / sync.apart.size
    pieces = total.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def evaluated_weight(saved: Saved, name: str, boxes: Boxes = ()) -> Tensor:
    """A parameter of a checkpoint as evaluations saw it: its average, else what all copies share, else the weight."""
    groups = [of_copy("optimizer", copy) for copy in range(saved.state.get("copies", 1))]
    key = f"{name}/{AVERAGE}"
    if all(key in saved.wholes.get(group, {}) for group in groups):
        return torch.stack([saved.read(group, key, boxes) for group in groups]).mean(0)
    if f"{name}/common" in saved.wholes.get("sync", {}):
        return saved.read("sync", f"{name}/common", boxes)
    return saved.read("model", name, boxes)
