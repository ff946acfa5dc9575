"""The seam of fine-tuning: labelled examples in, predictions and figures out.

A labelled task is a task like any other to the training loop. Beside that it knows which columns it reads, how an example
becomes pieces of tokens, what an evaluation keeps of each piece, and how that becomes predictions and figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from shoal.core.recipe import Recipe
from shoal.data.examples.example import Example, Role
from shoal.data.examples.rows import Sample
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models.loss import IGNORED
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire
from shoal.tasks.task import Batch, Pieces, Task, on_device


@dataclass(frozen=True)
class Head:
    """The head that a task wants on the model: its kind, and how many scores it gives."""

    kind: Literal["sequence", "token", "span"]
    outputs: int


class LabelledTask(Task, Protocol):
    """A task with labels."""

    projected: float = 0.0
    roles: tuple[Role, ...]
    settings: Any
    """The task's section of the recipe, with what the examples told."""
    varied: tuple[str, ...] = ()
    """Roles whose text may be varied without another label being right (`data.examples.augment`)."""
    head: Head | None
    """None: the model's own projection onto the vocabulary."""
    metric: str
    """The figure by which the best model is chosen: `eval_` before one of `measure`, or `eval_loss`."""
    tokenizer: TextTokenizer
    """The one given, perhaps with further special tokens, for which the model then gets rows."""
    length: int
    """Tokens of a text, at most."""
    writes: bool = False
    """Whether the last evaluation lets the model write texts, which takes long."""
    outside: frozenset[str] = frozenset()
    """Keys of its section that no model's folder may say, such as commands to be run."""

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """`length`: tokens of a text, at most; `examples`: those of training, which may tell what the recipe doesn't."""
        ...

    def samples(self, example: Example) -> list[Sample]:
        """What is read of an example, in samples that are learnt from one by one; `InputError` names where it is wrong."""
        ...

    def notes(self) -> list[str]:
        """What is to be told of the examples before a run."""
        framed = getattr(self, "framed", None)
        if framed is None or not framed.cut:
            return []
        return [
            f"{framed.cut:,} of {framed.count:,} texts are longer than the {self.length:,} tokens that the model reads, and "
            "lost their end"
        ]

    def completed(self, samples: list[Sample], wire: Wire) -> list[Sample]:
        """The samples with what a model tells of them once and for all; ranks share the work, and get all of it."""
        return samples

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss`, `targets`, and what else the sums over all examples tell."""
        return {"loss": sums["loss"] / max(sums["count"], 1), "targets": int(sums["count"])}

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """What predictions are made of, for each piece of the batch, on the CPU; `final`: it may take its time."""
        ...

    def evaluated(self, model: Transformer, batch: Batch, final: bool) -> tuple[dict[str, Tensor], list[Any]]:
        """What `sums` and `outputs` give; a task that has both of one pass through the model says so here."""
        return self.sums(model, batch), self.outputs(model, batch, final)

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """A prediction for each example, ready for JSON, from its pieces' outputs."""
        ...

    def judged(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """A prediction of the last evaluation with what takes time to find out; ranks share the examples."""
        return prediction

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the predictions are worth; names without `eval_`."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `config.json` says, enough to make the task again."""
        ...


def labelled_batch(sequences: Sequences, device: torch.device) -> Batch:
    """Rows of pieces as tensors; rows in which nothing is have no pieces."""
    labels = sequences.labels
    tokens = on_device(sequences.tokens, device)
    if labels is None:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        place = torch.arange(tokens.shape[1], dtype=torch.int32, device=device).expand_as(tokens)
        alone = Reach(place, place + 1)  # a joined row may be longer than the model's context
        return Batch(tokens.clamp(min=0), torch.full_like(tokens, -100), 0, alone, pieces=Pieces(none, none, [], {}))
    return Batch(
        tokens.clamp(min=0),
        on_device(labels.targets, device),
        int(labels.lengths.sum()),
        Reach(on_device(labels.lows, device), on_device(labels.ends, device)),
        on_device(labels.segments, device),
        pieces=Pieces(
            on_device(labels.starts, device),
            on_device(labels.lengths, device),
            labels.samples.tolist(),
            {name: on_device(value, device) for name, value in labels.values.items()},
        ),
    )


def next_token_batch(sequences: Sequences, device: torch.device) -> Batch:
    """The same, of pieces whose targets are tokens of the vocabulary, with the places of these."""
    batch = labelled_batch(sequences, device)
    targets = np.full(0, IGNORED) if sequences.labels is None else sequences.labels.targets
    return replace(batch, at=on_device(np.flatnonzero(targets != IGNORED), device))


def settled(settings: Any, **found: Any) -> Any:
    """A task's section of the recipe, with what the examples told."""
    return replace(settings, **found)


def no_loss(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, count) of a batch without pieces, with a gradient of zero for all that was computed."""
    if not hidden.requires_grad and torch.is_grad_enabled():  # of a frozen trunk
        hidden = hidden.detach().requires_grad_()
    return hidden.sum() * 0.0, torch.zeros((), dtype=torch.int64, device=hidden.device)
