"""One label a text, or a pair of texts; or several.

The loss is the cross entropy of the label, or, where a text may have several, of each label by itself, yes or no. In
training `classify.weights` makes rare labels count more, `classify.focal` those that are not yet told (Lin et al. 2017,
arXiv:1708.02002), and `regular.label_smoothing` softens the targets; what an evaluation tells is the plain cross entropy,
so that runs compare whatever they minimise; and beside it, as `minimised_loss`, what compares with the training loss.

Shape suffixes: P pieces, L labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shoal.core.errors import InputError, RecipeError
from shoal.core.recipe import Recipe
from shoal.data.examples.example import Example, Role
from shoal.data.examples.rows import Piece, Sample
from shoal.data.examples.texts import Framed, frame_size, frame_texts
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import Head, LabelledTask, labelled_batch, no_loss, settled
from shoal.tasks.labels import Numbering, check_labels, found_labels, label_names, ordered
from shoal.tasks.task import Batch, Pieces, scalar

TEXT = Role(
    "text", ("text", "text_a", "text1", "sentence1", "question1", "premise", "question", "sentence", "review", "content")
)  # fmt: skip
PAIR = Role(
    "text_b", ("text_b", "text2", "sentence2", "question2", "hypothesis", "passage", "sentence"), needed=False
)  # fmt: skip
LABEL = Role("label", ("label", "labels", "class", "category", "sentiment", "topic"))

THRESHOLD = 0.5
"""Where a text may have several labels: the probability from which on it is told to have one."""


class Classify(LabelledTask):
    """Labels by number; `labels` are their names."""

    roles = (TEXT, PAIR, LABEL)
    varied = ("text", "text_b")
    metric = "eval_accuracy"

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """The labels are those of the examples, where the recipe doesn't name them; `InputError` where that can't be."""
        settings = recipe.classify
        self.mixup = recipe.augment.mixup
        self.several, self.focal, self.smoothing = settings.several, settings.focal, recipe.regular.label_smoothing
        found = found_labels(examples, self.several)
        self.labels = settings.labels or ordered({label for its in found for label in its})
        check_labels(self.labels, len(examples), bool(settings.labels), self.several)
        self.numbering = Numbering(self.labels)
        self.settings = settled(settings, labels=self.labels)
        if self.several or settings.weights == "balanced":
            self.metric = "eval_macro_f1"
        self.weights_L = self._balanced(found) if settings.weights == "balanced" and examples else None
        self.minimises_other = bool(examples) and (self.weights_L is not None or self.focal > 0 or self.smoothing > 0)
        self.head = Head("sequence", len(self.labels))
        self.tokenizer, self.length, self.framed = tokenizer, length, Framed()
        if length < frame_size(tokenizer, 2) + 2:
            raise RecipeError(f"'examples.length' is {length}, in which no two texts and their special tokens have room")

    def samples(self, example: Example) -> list[Sample]:
        """One piece: the text, or both, with the label's number, or, of several, 1 for each that it has."""
        texts = [_filled(example, "text")]
        if example.values.get("text_b") is not None:
            texts.append(_filled(example, "text_b"))
        numbers = self.numbers_of(example)
        label: Any = numbers[0] if not self.several else np.isin(np.arange(len(self.labels)), numbers).astype(np.float32)
        tokens, segments = frame_texts(self.tokenizer, texts, self.length, self.framed)
        return [(Piece(tokens, segments=segments, values={"label": label}),)]

    def numbers_of(self, example: Example) -> list[int]:
        """The numbers of the example's labels; `InputError` for an unknown one."""
        return [self.numbering.number(label, example.where) for label in label_names(example, self.several)]

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Pieces and their labels."""
        return labelled_batch(sequences, device)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss, and the number of texts; of several labels, of texts times labels."""
        hidden_BTD, scores_PL = self._scores(model, batch)
        if scores_PL is None or batch.pieces is None:
            return no_loss(hidden_BTD)
        if self.mixup and model.training:
            losses = self._mixed(model, hidden_BTD, batch.pieces)
        else:
            losses = self.losses(scores_PL, batch.pieces.values["label"])
        return losses.sum(), _count(losses)

    def _mixed(self, model: Transformer, hidden_BTD: Tensor, pieces: Pieces) -> Tensor:
        """Losses of texts that are mixed in pairs after pooling, against both labels (Guo et al. 2019, arXiv:1905.08941).

        Pairs and the share are those of the micro-batch: other ranks, or sizes of it, mix otherwise.
        """
        pooled_PD = model.pool_texts(hidden_BTD, pieces.starts, pieces.lengths)
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        other = torch.randperm(len(pooled_PD)).to(pooled_PD.device)
        scores_PL, labels = model.score_pooled(pooled_PD.lerp(pooled_PD[other], 1 - share)), pieces.values["label"]
        return share * self.losses(scores_PL, labels) + (1 - share) * self.losses(scores_PL, labels[other])

    def losses(self, scores_PL: Tensor, labels: Tensor) -> Tensor:
        """What is minimised, of each text [pieces]; of several labels, of each of them [pieces, labels]."""
        weights_L = None if self.weights_L is None else self.weights_L.to(scores_PL.device)
        if self.several:
            soft = labels * (1 - self.smoothing) + self.smoothing / 2
            losses = F.binary_cross_entropy_with_logits(scores_PL, soft, reduction="none", pos_weight=weights_L)
        else:
            losses = F.cross_entropy(scores_PL, labels, reduction="none", label_smoothing=self.smoothing)
            losses = losses if weights_L is None else losses * weights_L[labels]
        if not self.focal:
            return losses
        missed = -torch.expm1(-self.cross_entropies(scores_PL, labels))  # the probability that the right answer lacks
        return losses * missed.clamp(min=1e-12) ** self.focal  # a power below 1 has no slope at 0

    def cross_entropies(self, scores_PL: Tensor, labels: Tensor) -> Tensor:
        """What an evaluation tells, of each text [pieces]; of several labels, of each of them [pieces, labels]."""
        if self.several:
            return F.binary_cross_entropy_with_logits(scores_PL, labels, reduction="none")
        return F.cross_entropy(scores_PL, labels, reduction="none")

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Plain cross entropy, and count."""
        return self.evaluated(model, batch, final=True)[0]

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """Probabilities of all labels."""
        return self.evaluated(model, batch, final)[1]

    def evaluated(self, model: Transformer, batch: Batch, final: bool) -> tuple[dict[str, Tensor], list[Any]]:
        """Both, in one pass through the model."""
        hidden_BTD, scores_PL = self._scores(model, batch)
        if scores_PL is None or batch.pieces is None:
            loss_sum, count = no_loss(hidden_BTD)
            return {"loss": loss_sum, "count": count}, []
        labels = batch.pieces.values["label"]
        losses = self.cross_entropies(scores_PL, labels)
        sums = {"loss": losses.sum(), "count": _count(losses)}
        if self.minimises_other:
            sums["minimised"] = self.losses(scores_PL, labels).sum()
        probabilities_PL = scores_PL.sigmoid() if self.several else scores_PL.softmax(-1)
        return sums, list(probabilities_PL.cpu().numpy())

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` and `targets`; and `minimised_loss`, where training minimises something else."""
        other = {"minimised_loss": sums["minimised"] / max(sums["count"], 1)} if "minimised" in sums else {}
        return super().figures(sums) | other

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """The likeliest label, or those from the threshold on; what is true; and the probability of each."""
        predictions: list[dict[str, Any]] = []
        for example, (probabilities,) in zip(examples, outputs, strict=True):
            told = np.flatnonzero(probabilities >= THRESHOLD) if self.several else [int(np.argmax(probabilities))]
            names, true = ([self.labels[number] for number in its] for its in (told, sorted(self.numbers_of(example))))
            each = {label: round(float(value), 6) for label, value in zip(self.labels, probabilities, strict=True)}
            if self.several:
                predictions.append({"labels": names, "true": true, "probabilities": each})
            else:
                predictions.append({"label": names[0], "true": true[0], "probabilities": each})
        return predictions

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Accuracy and F1, and each label's precision, recall and F1; of one label a text, the confusion matrix.

        `macro_f1` is the mean over the labels that occur, or are told. Of several labels, `micro_f1` is that of all
        decisions together, and `accuracy` the share of texts of which all labels are right.
        """
        if self.several:
            true_PL, told_PL = (self._marked([one[key] for one in predictions]) for key in ("true", "labels"))
            right_L, actual_L, told_L = (true_PL & told_PL).sum(0), true_PL.sum(0), told_PL.sum(0)
            return {
                "accuracy": float((true_PL == told_PL).all(1).mean()),
                "micro_f1": float(2 * right_L.sum() / max(1, actual_L.sum() + told_L.sum())),
                **self._each(right_L, actual_L, told_L),
            }
        true, told = (np.array([self.numbering.numbers[one[key]] for one in predictions]) for key in ("true", "label"))
        matrix_LL = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        np.add.at(matrix_LL, (true, told), 1)
        return {
            "accuracy": float((true == told).mean()),
            **self._each(matrix_LL.diagonal(), matrix_LL.sum(1), matrix_LL.sum(0)),
            "confusion": matrix_LL.tolist(),
        }

    def describe(self) -> dict[str, Any]:
        """Names of the labels, and whether there may be several, as `transformers` has them."""
        kind = "multi_label_classification" if self.several else "single_label_classification"
        return {"id2label": dict(enumerate(self.labels)), "label2id": self.numbering.numbers, "problem_type": kind}

    def _each(self, right_L: NDArray[np.int64], actual_L: NDArray[np.int64], told_L: NDArray[np.int64]) -> dict[str, Any]:
        """Figures of each label, and the mean of F1, from how often it was told rightly, occurs, and was told."""
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall, f1 = (np.nan_to_num(right_L / total) for total in (told_L, actual_L, (actual_L + told_L) / 2))
        each = {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "examples": int(n)}
            for label, p, r, f, n in zip(self.labels, precision, recall, f1, actual_L, strict=True)
        }
        present = actual_L + told_L > 0
        return {"macro_f1": float(f1[present].mean()) if present.any() else 0.0, "labels": each}

    def _marked(self, lists: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """Which labels are in each list [lists, labels]."""
        return np.array([[label in its for label in self.labels] for its in lists])

    def _scores(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(hidden states, scores of each piece; None where there are no pieces)."""
        hidden_BTD = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
        pieces = batch.pieces
        assert pieces is not None
        return hidden_BTD, model.score_texts(hidden_BTD, pieces.starts, pieces.lengths) if len(pieces.samples) else None

    def _balanced(self, found: Sequence[Sequence[str]]) -> Tensor:
        """What each label counts.

        One a text: examples / (labels × examples of it), so that all weigh the same, and an example 1 on average. Several:
        what having it counts next to not having it, so that both weigh the same. A label that none, or all, have counts 1.
        """
        placed = (self.numbering.find(label) for labels in found for label in labels)
        numbers = np.array([number for number in placed if number is not None], dtype=np.int64)
        counts_L = np.bincount(numbers, minlength=len(self.labels)).astype(np.float64)
        equal = len(found) / max(1, (counts_L > 0).sum())
        shares_L = len(found) - counts_L if self.several else np.full_like(counts_L, equal)
        weights_L = np.divide(shares_L, counts_L, out=np.ones_like(counts_L), where=(counts_L > 0) & (shares_L > 0))
        return torch.tensor(weights_L, dtype=torch.float32)


def _filled(example: Example, role: str) -> str:
    text = example.text(role)
    if not text.strip():
        raise InputError(f"{example.where}: the {role} is empty")
    return text


def _count(losses: Tensor) -> Tensor:
    return scalar(losses.numel(), losses.device)
