"""One label a text, or a pair of texts; or several.

The loss is the cross entropy of the label, or of each label by itself where a text may have several; `classify.weights`
makes rare labels count more, `classify.focal` those that are not yet told (Lin et al. 2017, arXiv:1708.02002).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.core.errors import InputError
from shoal.core.recipe import Recipe
from shoal.data.examples.example import Example, Role
from shoal.data.examples.rows import Piece, Sample
from shoal.data.examples.texts import Framed, frame_texts
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import Head, LabelledTask, labelled_batch, no_loss, settled
from shoal.tasks.task import Batch

TEXT = Role("text", ("text", "sentence", "sentence1", "review", "content", "premise", "question"))
PAIR = Role("text_b", ("text_b", "text2", "sentence2", "hypothesis", "passage"), needed=False)
LABEL = Role("label", ("label", "labels", "class", "category", "sentiment", "topic"))


class Classify(LabelledTask):
    """Labels by number; `labels` are their names."""

    roles = (TEXT, PAIR, LABEL)
    varied = ("text", "text_b")
    metric = "eval_accuracy"

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """The labels are those of the examples, where the recipe doesn't name them."""
        self.tokenizer, self.length = tokenizer, length
        self.labels = recipe.classify.labels or sorted({str(example.values["label"]) for example in examples})
        self.settings = settled(recipe.classify, labels=self.labels)
        if len(self.labels) < 2:
            raise InputError(
                f"the training examples have one label, {', '.join(self.labels)}: there is nothing to tell apart"
            )
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.head = Head("sequence", len(self.labels))
        self.framed = Framed()

    def samples(self, example: Example) -> list[Sample]:
        """One piece: the text, or both, with the label's number."""
        texts = [example.text("text")]
        if example.values.get("text_b") is not None:
            texts.append(example.text("text_b"))
        tokens, segments = frame_texts(self.tokenizer, texts, self.length, self.framed)
        return [(Piece(tokens, segments=segments, values={"label": self.number(example)}),)]

    def number(self, example: Example) -> int:
        """The number of the example's label; `InputError` for an unknown one."""
        label = str(example.values.get("label"))
        if label not in self.numbers:
            raise InputError(
                f"{example.where}: unknown label '{label}'; the labels are: {', '.join(self.labels)}. Others are added by "
                "--classify.labels"
            )
        return self.numbers[label]

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Pieces and their labels."""
        return labelled_batch(sequences, device)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy, and the number of texts."""
        hidden_BTD, scores_PL = self._scores(model, batch)
        if scores_PL is None:
            return no_loss(hidden_BTD)
        assert batch.pieces is not None
        labels_P = batch.pieces.values["label"]
        return F.cross_entropy(scores_PL, labels_P, reduction="sum"), (labels_P >= 0).sum()

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss and count."""
        loss_sum, count = self.loss(model, batch)
        return {"loss": loss_sum, "count": count}

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """Probabilities of all labels."""
        _, scores_PL = self._scores(model, batch)
        return [] if scores_PL is None else list(scores_PL.softmax(-1).cpu().numpy())

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """The likeliest label, and the probability of each."""
        return [
            {
                "label": self.labels[int(np.argmax(probabilities))],
                "probabilities": {
                    label: round(float(value), 6) for label, value in zip(self.labels, probabilities, strict=True)
                },
            }
            for (probabilities,) in outputs
        ]

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Accuracy, F1 as a mean over labels, and each label's precision, recall and F1, with the confusion matrix."""
        true = np.array([self.number(example) for example in examples])
        found = np.array([self.numbers[prediction["label"]] for prediction in predictions])
        matrix = np.zeros((len(self.labels), len(self.labels)), dtype=int)
        np.add.at(matrix, (true, found), 1)
        right, actual, told = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall, f1 = (np.nan_to_num(right / total) for total in (told, actual, (actual + told) / 2))
        each = {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "examples": int(n)}
            for label, p, r, f, n in zip(self.labels, precision, recall, f1, actual, strict=True)
        }
        return {
            "accuracy": float(right.sum() / len(true)),
            "macro_f1": float(f1.mean()),
            "labels": each,
            "confusion": matrix.tolist(),
        }

    def describe(self) -> dict[str, Any]:
        """Names of the labels, as `transformers` has them."""
        return {"id2label": dict(enumerate(self.labels)), "label2id": self.numbers}

    def _scores(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor | None]:
        hidden_BTD = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
        pieces = batch.pieces
        assert pieces is not None
        return hidden_BTD, model.score_texts(hidden_BTD, pieces.starts, pieces.lengths) if len(pieces.samples) else None
