"""Extractive question answering: which part of a text answers a question, or that none does.

The model reads `[CLS] question [SEP] context [SEP]` and scores every token as the answer's first and as its last; the loss
is the mean of the two cross entropies (Devlin et al. 2019), as in `transformers`' classes for question answering. A long
context is read in windows that overlap, each a sample of its own: one without the whole of the answer has the first token as
its target, as have questions without an answer.

What is told is the part of the context, in whichever window, whose two scores have the largest sum. Where there may be no
answer, none is told if the first token's two scores, of the window where their sum is least, are above that by more than
`answer.threshold` (Devlin et al., on SQuAD 2.0).

Shape suffixes: P pieces (windows), L tokens of the longest, N of all rows.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.core.errors import InputError, RecipeError
from shoal.core.recipe import Recipe
from shoal.data.examples.alignment import Aligner
from shoal.data.examples.answers import ROLES, has_answer, read_answers, tokens_of, window_starts
from shoal.data.examples.example import Example
from shoal.data.examples.rows import Piece, Sample
from shoal.data.examples.texts import frame_parts, frame_size
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import Head, LabelledTask, labelled_batch, no_loss, settled
from shoal.tasks.squad_score import score
from shoal.tasks.task import Batch, Pieces, scalar

CONTEXTS = 1024
"""Contexts of which the tokens are kept: those of one text's questions stand together."""


class Answer(LabelledTask):
    """Answers by their first and last tokens."""

    roles = ROLES
    metric = "eval_f1"

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """Questions may have no answer if some of the examples have none, where the recipe doesn't say it."""
        self.tokenizer = tokenizer
        self.room = length - frame_size(tokenizer, 2)
        if self.room < 2:
            raise RecipeError(f"'examples.length' is {length}, in which no question and context have room")
        said = recipe.answer
        unanswerable = said.unanswerable
        if unanswerable is None:
            unanswerable = not all(map(has_answer, examples))
        self.settings = settled(said, unanswerable=unanswerable)
        self.head = Head("span", 2)
        self.characters = lru_cache(CONTEXTS)(Aligner(tokenizer).characters)
        self.questions = self.windowed = self.shortened = 0

    def notes(self) -> list[str]:
        """What is to be told of the examples."""
        told = []
        if self.windowed:
            told.append(f"{self.windowed:,} of {self.questions:,} contexts are longer than the model reads: read in windows")
        if self.shortened:
            told.append(f"{self.shortened:,} of {self.questions:,} questions fill half of a window, and lost their end")
        return told

    def samples(self, example: Example) -> list[Sample]:
        """The windows of the context, each with the question; `InputError` for an answer that is not in it."""
        answers = read_answers(example)
        question = self.tokenizer.encode(example.text("question"))
        context, places = self.characters(example.text("context"))
        if not len(context):
            raise InputError(f"{example.where}: the context is empty")
        self.questions += 1
        self.shortened += len(question) > self.room // 2
        question = question[: self.room // 2]
        room = self.room - len(question)
        starts = window_starts(len(context), room, self.settings.stride)
        self.windowed += len(starts) > 1
        first, last = tokens_of(answers[0], places) if answers else (-1, -1)
        before, between, _ = self.tokenizer.frames[2].special
        offset = len(before) + len(question) + len(between)
        samples: list[Sample] = []
        for start in starts:
            part = context[start : start + room]
            tokens, segments = frame_parts(self.tokenizer, [question, part])
            inside = start <= first and last < start + len(part)
            span = (first - start + offset, last - start + offset) if inside else (0, 0)
            values = {"span": span, "offset": offset, "context": len(part), "start": start}
            samples.append((Piece(tokens, segments=segments, values=values),))
        return samples

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Windows, and where the answers are in them."""
        return labelled_batch(sequences, device)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed mean of both cross entropies, and the number of windows."""
        hidden_BTD = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
        assert batch.pieces is not None
        if not batch.pieces.samples:
            return no_loss(hidden_BTD)
        return _loss(_by_piece(model, hidden_BTD, batch.pieces), batch.pieces)

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss and count."""
        return self.evaluated(model, batch, final=True)[0]

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """Of each window: its best part's score, first and last token in the context, and the score of none."""
        return self.evaluated(model, batch, final)[1]

    def evaluated(self, model: Transformer, batch: Batch, final: bool) -> tuple[dict[str, Tensor], list[Any]]:
        """Both, in one pass through the model."""
        hidden_BTD, pieces = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments), batch.pieces
        assert pieces is not None
        if not pieces.samples:
            loss_sum, count = no_loss(hidden_BTD)
            return {"loss": loss_sum, "count": count}, []
        scores_PL2 = _by_piece(model, hidden_BTD, pieces)
        loss_sum, count = _loss(scores_PL2, pieces)
        offset_P, place_L = pieces.values["offset"], torch.arange(scores_PL2.shape[1], device=scores_PL2.device)
        further_PL = place_L - offset_P[:, None]
        outside_PL = (further_PL < 0) | (further_PL >= pieces.values["context"][:, None])
        best_P, first_P, last_P = best_spans(
            scores_PL2.masked_fill(outside_PL[..., None], -torch.inf), self.settings.longest
        )
        shift_P = pieces.values["start"] - offset_P
        found = (best_P, first_P + shift_P, last_P + shift_P, scores_PL2[:, 0].sum(-1))
        return {"loss": loss_sum, "count": count}, list(zip(*(values.tolist() for values in found), strict=True))

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """The answer and its place in the context, in characters; the text is empty, and the place null, for none.

        `score`: by how much it is above that of no answer.
        """
        return [self._prediction(example, windows) for example, windows in zip(examples, outputs, strict=True)]

    def _prediction(self, example: Example, windows: Sequence[tuple[float, int, int, float]]) -> dict[str, Any]:
        best, first, last, _ = max(windows)
        over_none = best - min(none for *_, none in windows)
        if self.settings.unanswerable and -over_none > self.settings.threshold:
            return {"text": "", "start": None, "end": None, "score": round(over_none, 4)}
        context = example.text("context")
        _, places = self.characters(context)
        start, end = int(places[first, 0]), int(places[last, 1])
        text = context[start:end].strip()
        start += context[start:end].find(text)
        return {"text": text, "start": start, "end": start + len(text), "score": round(over_none, 4)}

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Exact match and F1, from 0 to 1, as SQuAD counts them; where some have no answer, also of each kind by itself."""
        right = [[answer.text for answer in read_answers(example)] for example in examples]
        unanswerable = self.settings.unanswerable or not all(right)
        scores = np.array([
            score(prediction["text"], texts, unanswerable) for prediction, texts in zip(predictions, right, strict=True)
        ])  # fmt: skip
        answered = np.array([bool(texts) for texts in right])
        kinds = {"answerable": answered, "unanswerable": ~answered} if unanswerable else {}
        return _means(scores) | {
            kind: _means(scores[chosen]) | {"questions": int(chosen.sum())} for kind, chosen in kinds.items() if chosen.any()
        }

    def describe(self) -> dict[str, Any]:
        """Nothing beside the settings."""
        return {}


def best_spans(scores_PL2: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """(score, first, last) [pieces] of the part of each piece, `longest` tokens at most, with the largest sum of two scores.

    `scores` [pieces, tokens, 2]: as first, and as last. Of equal ones it is the shortest, then the earliest.
    """
    first_PL, last_PL = scores_PL2.unbind(-1)
    pieces, length = first_PL.shape
    best_P = first_PL.new_full((pieces,), -torch.inf)
    begin_P, end_P = (torch.zeros(pieces, dtype=torch.int64, device=first_PL.device) for _ in range(2))
    for further in range(min(longest, length)):
        most_P, at_P = (first_PL[:, : length - further] + last_PL[:, further:]).max(1)
        better_P = most_P > best_P
        best_P = torch.where(better_P, most_P, best_P)
        begin_P = torch.where(better_P, at_P, begin_P)
        end_P = torch.where(better_P, at_P + further, end_P)
    return best_P, begin_P, end_P


def _by_piece(model: Transformer, hidden_BTD: Tensor, pieces: Pieces) -> Tensor:
    """The scores of each piece's tokens [pieces, longest piece, 2], minus infinity behind its end."""
    place_L = torch.arange(int(pieces.lengths.max()), device=hidden_BTD.device)
    scores_N2 = model.score_tokens(hidden_BTD.flatten(0, 1))
    at_PL = (pieces.starts[:, None] + place_L).clamp(max=len(scores_N2) - 1)
    return scores_N2[at_PL].masked_fill((place_L >= pieces.lengths[:, None])[..., None], -torch.inf)


def _loss(scores_PL2: Tensor, pieces: Pieces) -> tuple[Tensor, Tensor]:
    span_P2 = pieces.values["span"]
    return F.cross_entropy(scores_PL2, span_P2, reduction="sum") / 2, scalar(len(span_P2), span_P2.device)


def _means(scores: np.ndarray[Any, Any]) -> dict[str, float]:
    exact, f1 = scores.mean(0).tolist()
    return {"exact": exact, "f1": f1}
