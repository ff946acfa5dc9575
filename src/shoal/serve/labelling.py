"""Labels for texts that come by themselves, from a model that was fine-tuned to classify or to tag.

A task reads examples with their labels. Here a text comes without, so it gets some label, which changes nothing in what the
model tells. What is computed is computed piece by piece, of which a text that is tagged has as many as it is long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
import torch

from shoal.core.errors import InputError
from shoal.data.examples.entities import read_tags
from shoal.data.examples.example import Example
from shoal.data.examples.rows import Piece, collate
from shoal.models.transformer import Transformer
from shoal.tasks import Classify, Tag


@dataclass(frozen=True)
class LabelledText:
    """A text as its task reads it."""

    example: Example
    pieces: list[Piece]
    cut: bool
    """Whether it was longer than the model reads, and lost its end."""

    @property
    def tokens(self) -> int:
        """Of all pieces, special ones included."""
        return sum(len(piece.tokens) for piece in self.pieces)


@dataclass(frozen=True)
class Labels:
    """`label`: the likeliest (None: none, of a model that tells several); `labels`: all that the text has."""

    label: str | None
    labels: list[str]
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Entity:
    """A part of a text, from character `start` to before `end`; `score`: the mean probability of its words' tags."""

    type: str
    start: int
    end: int
    text: str
    score: float


class Labeller:
    """A fine-tuned model and its task."""

    def __init__(self, model: Transformer, task: Classify | Tag) -> None:
        self.model, self.task = model, task
        self._reading = Lock()

    @property
    def labels(self) -> list[str]:
        """Names of the labels, or of the types of entities."""
        return list(self.task.labels if isinstance(self.task, Classify) else self.task.types)

    def read(self, text: str, second: str | None = None, where: str = "input") -> LabelledText:
        """A text, or a pair, as tokens, from any thread; `InputError` for one that is empty, or can't be spelled."""
        if isinstance(self.task, Tag):
            if second is not None:
                raise InputError(f"{where}: the model tags single texts, not pairs")
            example = Example({"text": text, "entities": []}, where)
            return LabelledText(example, self._pieces(example), False)
        label: Any = [] if self.task.several else self.task.labels[0]
        pair = {} if second is None else {"text_b": second}
        example = Example({"text": text, **pair, "label": label}, where)
        with self._reading:  # the task counts what it cuts, of all texts
            before = self.task.framed.cut
            pieces = self._pieces(example)
            return LabelledText(example, pieces, self.task.framed.cut > before)

    def classify(self, texts: Sequence[LabelledText], outputs: Sequence[Any]) -> list[Labels]:
        """What is told of each text, by the `outputs` of all their pieces."""
        predictions = self.task.predict([text.example for text in texts], _by_text(texts, outputs))
        return [_labels(prediction) for prediction in predictions]

    def tag(self, texts: Sequence[LabelledText], outputs: Sequence[Any]) -> list[list[Entity]]:
        """For each text its entities, in their order; `outputs`: as of `classify`."""
        parts = _by_text(texts, outputs)
        predictions = self.task.predict([text.example for text in texts], parts)
        return [self._entities(found, its) for found, its in zip(predictions, parts, strict=True)]

    @torch.inference_mode()
    def outputs(self, pieces: Sequence[Piece]) -> list[Any]:
        """What the task keeps of each piece."""
        keys = np.zeros(1, dtype=np.uint64)
        sequences = collate(pieces, range(len(pieces)), keys, self.model.config.causal, "padded")
        return self.task.outputs(self.model, self.task.batch(sequences, self.model.head_weight.device), True)

    def _pieces(self, example: Example) -> list[Piece]:
        return [piece for sample in self.task.samples(example) for piece in sample]

    def _entities(self, prediction: dict[str, Any], parts: Sequence[Any]) -> list[Entity]:
        assert isinstance(self.task, Tag)
        numbers = [self.task.numbers[tag] for tag in prediction["tags"]]
        probability_W = np.exp(np.concatenate(parts))[np.arange(len(numbers)), numbers]
        placed = read_tags(prediction["tags"], self.task.settings.learned, str)
        return [
            Entity(
                shown["type"], shown["start"], shown["end"], shown["text"], float(probability_W[its.first : its.end].mean())
            )
            for shown, its in zip(prediction["entities"], placed, strict=True)
        ]


def _by_text(texts: Sequence[LabelledText], outputs: Sequence[Any]) -> list[list[Any]]:
    rest = iter(outputs)
    return [list(islice(rest, len(text.pieces))) for text in texts]


def _labels(prediction: Mapping[str, Any]) -> Labels:
    probabilities = prediction["probabilities"]
    labels = list(prediction["labels"]) if "labels" in prediction else [prediction["label"]]
    return Labels(max(labels, key=probabilities.__getitem__, default=None), labels, probabilities)
