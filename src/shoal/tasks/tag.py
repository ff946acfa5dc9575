"""Entities in sentences: a label a word, which BIO or BIOES tags are, and the entities that they tell.

The first token of a word tells its label (Devlin et al. 2019), as in `transformers`' classes for token classification; the
loss is the cross entropy over these tokens. Of a sentence's sequences of labels only those are told that are whole entities:
the likeliest of them. Figures are `seqeval`'s, strict: an entity counts if its type and both ends are right.

A sentence that is longer than the model reads is divided: each part ends after the last sign that ends a sentence in its
second half, or else where it is full. So every word is read, and every entity counts.

Shape suffixes: N tokens of all rows, A of them that have a label, L labels.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shoal.core.errors import InputError, RecipeError
from shoal.core.recipe import Recipe
from shoal.data.examples.alignment import Aligner
from shoal.data.examples.entities import (
    Entity,
    best_labels,
    followers,
    kinds_in,
    labels_of,
    read_tags,
    scheme_of,
    write_tags,
)
from shoal.data.examples.example import Example
from shoal.data.examples.rows import NO_TARGET, Piece, Sample
from shoal.data.examples.sentences import ROLES, Sentence, kinds_of, read_sentence, tags_of
from shoal.data.examples.texts import frame_parts, frame_size
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import Head, LabelledTask, labelled_batch, no_loss, settled
from shoal.tasks.task import Batch, scalar

SENTENCE_ENDS = frozenset("。！？；!?;.…")


class Tag(LabelledTask):
    """`labels`: tags by number. Further tokens of a word, where they learn label n, have the target `len(labels) + n`."""

    roles = ROLES
    metric = "eval_f1"

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """The scheme and the types are those of the examples, where the recipe doesn't say them."""
        _check_seqeval()
        self.tokenizer, self.aligner = tokenizer, Aligner(tokenizer)
        self.room = length - frame_size(tokenizer, 1)
        if self.room < 1:
            raise RecipeError(f"'examples.length' is {length}, in which no word has room beside the special tokens")
        said = recipe.tag
        scheme = said.scheme if said.scheme != "auto" else scheme_of(map(tags_of, examples))
        learned = said.learned if said.learned != "auto" else "bioes" if scheme == "bioes" else "bio"
        kinds = kinds_in(chain.from_iterable(map(tags_of, examples))).union(*map(kinds_of, examples))
        self.types = said.types or sorted(kinds)
        if not self.types:
            raise InputError("the training examples have no entities: there is nothing to tell; is this the right column?")
        self.settings = settled(said, scheme=scheme, learned=learned, types=self.types)
        self.labels = labels_of(self.types, learned)
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.allowed = followers(self.labels)
        self.head = Head("token", len(self.labels))
        self.sentences = self.divided = 0

    def notes(self) -> list[str]:
        """What is to be told of the examples."""
        if not self.divided:
            return []
        return [f"{self.divided:,} of {self.sentences:,} sentences are longer than the model reads, and were divided"]

    def sentence(self, example: Example) -> Sentence:
        """The example's words and entities; `InputError` where they are wrong."""
        return read_sentence(example, self.settings.scheme, self.settings.units)

    def samples(self, example: Example) -> list[Sample]:
        """The parts of the sentence, one mostly, each a piece in which every word has a first token."""
        sentence = self.sentence(example)
        unknown = next((entity for entity in sentence.entities if entity.kind not in self.types), None)
        if unknown is not None:
            raise InputError(
                f"{sentence.where(unknown.first)}: unknown type '{unknown.kind}'; the types are: {', '.join(self.types)}. "
                "Others are added by --tag.types"
            )
        tags = write_tags(sentence.entities, len(sentence.words), self.settings.learned)
        tokens = self.aligner.words(sentence.words, sentence.spaced)
        tokens = [of_word[: self.room] for of_word in tokens]
        ends = [word[-1:] in SENTENCE_ENDS for word in sentence.words]
        parts = divide([len(of_word) for of_word in tokens], ends, self.room)
        self.sentences += 1
        self.divided += len(parts) > 1
        return [(self._piece(tokens[part], tags[part]),) for part in parts]

    def _piece(self, words: Sequence[NDArray[np.int64]], tags: Sequence[str]) -> Piece:
        tokens, segments = frame_parts(self.tokenizer, [np.concatenate(words)])
        targets = np.full(len(tokens), NO_TARGET, dtype=np.int64)
        place = len(self.tokenizer.frames[1].special[0])
        for of_word, tag in zip(words, tags, strict=True):
            if self.settings.subwords == "all":
                targets[place : place + len(of_word)] = len(self.labels) + self.numbers[_inside(tag)]
            targets[place] = self.numbers[tag]
            place += len(of_word)
        return Piece(tokens, targets, segments)

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Pieces, and the targets of their words' tokens."""
        return labelled_batch(sequences, device)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy, and the number of tokens that have a label."""
        targets_N = batch.targets.flatten()
        at = (targets_N >= 0).nonzero().squeeze(1)
        hidden_BTD, scores_AL = self._scores(model, batch, at)
        if not len(at):
            return no_loss(hidden_BTD)
        labels_A = targets_N[at] % len(self.labels)
        return F.cross_entropy(scores_AL, labels_A, reduction="sum"), _count(at)

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss and count."""
        return self.evaluated(model, batch, final=True)[0]

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """The log-probabilities [words, labels] of each piece's words, from their first tokens."""
        return self.evaluated(model, batch, final)[1]

    def evaluated(self, model: Transformer, batch: Batch, final: bool) -> tuple[dict[str, Tensor], list[Any]]:
        """Both, in one pass through the model; the loss is that of first tokens."""
        pieces, targets_N = batch.pieces, batch.targets.flatten()
        assert pieces is not None
        at = ((targets_N >= 0) & (targets_N < len(self.labels))).nonzero().squeeze(1)
        hidden_BTD, scores_AL = self._scores(model, batch, at)
        if not pieces.samples:
            loss_sum, count = no_loss(hidden_BTD)
            return {"loss": loss_sum, "count": count}, []
        likely_AL = scores_AL.log_softmax(-1)
        borders = torch.searchsorted(at, pieces.starts).tolist()
        parts = np.split(likely_AL.cpu().numpy(), borders[1:])
        return {"loss": F.nll_loss(likely_AL, targets_N[at], reduction="sum"), "count": _count(at)}, parts

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Each sentence's tags, and its entities with their places in the text, in characters."""
        return [self._prediction(self.sentence(example), parts) for example, parts in zip(examples, outputs, strict=True)]

    def _prediction(self, sentence: Sentence, parts: Sequence[Any]) -> dict[str, Any]:
        tags = [self.labels[number] for number in best_labels(np.concatenate(parts), self.allowed)]
        entities = read_tags(tags, self.settings.learned, str)
        return {"text": sentence.text, "entities": [_shown(entity, sentence) for entity in entities], "tags": tags}

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Precision, recall and F1 of all entities, and of each type."""
        true = [
            write_tags(sentence.entities, len(sentence.words), self.settings.learned)
            for sentence in map(self.sentence, examples)
        ]
        return entity_figures(true, [prediction["tags"] for prediction in predictions], self.settings.learned)

    def describe(self) -> dict[str, Any]:
        """Names of the labels, as `transformers` has them."""
        return {"id2label": dict(enumerate(self.labels)), "label2id": self.numbers}

    def _scores(self, model: Transformer, batch: Batch, at: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BTD = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
        return hidden_BTD, model.score_tokens(hidden_BTD.flatten(0, 1)[at])


def divide(sizes: Sequence[int], ends: Sequence[bool], room: int) -> list[slice]:
    """Words of these sizes, in parts of `room` at most; of each part but the last, the end is as the file's head says."""
    parts: list[slice] = []
    start = size = 0
    border = 0  # behind the last sentence's end in the second half of the part
    number = 0
    while number < len(sizes):
        if size + sizes[number] > room:
            parts.append(slice(start, border or number))
            start = number = border or number
            size = border = 0
            continue
        size += sizes[number]
        number += 1
        if ends[number - 1] and 2 * size > room:
            border = number
    return [*parts, slice(start, len(sizes))]


def entity_figures(true: list[list[str]], told: list[list[str]], scheme: str) -> dict[str, Any]:
    """`seqeval`'s strict figures of tags in BIO or BIOES: of all entities, and by type, under `labels`."""
    from seqeval.metrics.v1 import precision_recall_fscore_support, unique_labels
    from seqeval.scheme import IOB2, IOBES

    kind = IOBES if scheme == "bioes" else IOB2
    whole = precision_recall_fscore_support(true, told, average="micro", scheme=kind, zero_division=0)
    each = zip(*precision_recall_fscore_support(true, told, scheme=kind, zero_division=0), strict=True)
    names = unique_labels(true, told, kind)
    return _figures(*whole) | {"labels": {name: _figures(*its) for name, its in zip(names, each, strict=True)}}


def _figures(precision: Any, recall: Any, f1: Any, entities: Any) -> dict[str, Any]:
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "entities": int(entities)}


def _count(at: Tensor) -> Tensor:
    return scalar(len(at), at.device)


def _check_seqeval() -> None:
    if find_spec("seqeval") is None:
        raise InputError("task 'tag' measures with seqeval, which is not installed: pip install 'shoal[tasks]'")


def _inside(tag: str) -> str:
    """What further tokens of a word with this tag learn."""
    mark, dash, kind = tag.partition("-")
    return f"{'I' if mark in 'BI' else mark}{dash}{kind}"


def _shown(entity: Entity, sentence: Sentence) -> dict[str, Any]:
    start, end = sentence.places[entity.first][0], sentence.places[entity.end - 1][1]
    return {"text": sentence.text[start:end], "type": entity.kind, "start": start, "end": end}
