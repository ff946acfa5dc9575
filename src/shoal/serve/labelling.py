"""Labels for texts that come by themselves, from a model that was fine-tuned to classify or to tag.

A task reads examples with their labels. Here a text comes without, so it gets some label, which changes nothing in what the
model tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shoal.core.errors import InputError
from shoal.data.examples.entities import read_tags
from shoal.data.examples.example import Example
from shoal.data.examples.rows import Sample, collate
from shoal.models.transformer import Transformer
from shoal.tasks import Classify, Tag


@dataclass(frozen=True)
class LabelledText:
    """A text as its task reads it."""

    example: Example
    samples: list[Sample]
    tokens: int
    cut: bool
    """Whether it was longer than the model reads, and lost its end."""


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

    @property
    def labels(self) -> list[str]:
        """Names of the labels, or of the types of entities."""
        return list(self.task.labels if isinstance(self.task, Classify) else self.task.types)

    def read(self, text: str, second: str | None = None, where: str = "input") -> LabelledText:
        """A text, or a pair, as tokens; `InputError` for one that is empty, or has characters that no token stands for."""
        if isinstance(self.task, Tag):
            if second is not None:
                raise InputError(f"{where}: the model tags single texts, not pairs")
            example = Example({"text": text, "entities": []}, where)
            cut = 0
        else:
            label: Any = [] if self.task.several else self.task.labels[0]
            pair = {} if second is None else {"text_b": second}
            example = Example({"text": text, **pair, "label": label}, where)
            cut = self.task.framed.cut
        samples = self.task.samples(example)
        tokens = sum(len(piece.tokens) for sample in samples for piece in sample)
        return LabelledText(example, samples, tokens, isinstance(self.task, Classify) and self.task.framed.cut > cut)

    def classify(self, texts: Sequence[LabelledText]) -> list[Labels]:
        """What is told of each text."""
        predictions = self.task.predict([text.example for text in texts], self._outputs(texts))
        return [_labels(prediction) for prediction in predictions]

    def tag(self, texts: Sequence[LabelledText]) -> list[list[Entity]]:
        """For each text its entities, in their order."""
        outputs = self._outputs(texts)
        predictions = self.task.predict([text.example for text in texts], outputs)
        return [self._entities(found, parts) for found, parts in zip(predictions, outputs, strict=True)]

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

    @torch.inference_mode()
    def _outputs(self, texts: Sequence[LabelledText]) -> list[list[Any]]:
        """What the task keeps of each text's pieces."""
        owners = [number for number, text in enumerate(texts) for _ in text.samples]
        pieces = [piece for text in texts for sample in text.samples for piece in sample]
        keys = np.zeros(1, dtype=np.uint64)
        sequences = collate(pieces, range(len(pieces)), keys, self.model.config.causal, "padded")
        batch = self.task.batch(sequences, self.model.head_weight.device)
        outputs: list[list[Any]] = [[] for _ in texts]
        for owner, output in zip(owners, self.task.outputs(self.model, batch, True), strict=True):
            outputs[owner].append(output)
        return outputs


def _labels(prediction: Mapping[str, Any]) -> Labels:
    probabilities = prediction["probabilities"]
    labels = list(prediction["labels"]) if "labels" in prediction else [prediction["label"]]
    return Labels(max(labels, key=probabilities.__getitem__, default=None), labels, probabilities)
