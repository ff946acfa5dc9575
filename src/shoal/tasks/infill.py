"""Fill in the blanks: a decoder that sees what is before and what is after (`tasks.blanks` has the two forms).

Each document of a row is rewritten by itself, on a key of its own, and sees nothing of its neighbours. What a document grows
by (three tokens in the middle form, two a span in the other) the row's end has no room for: there a random stretch of the
last document is kept, another in every epoch. The loss is over what is filled in; what stands around it, where it is read
causally, is a target too, which counts `infill.context_weight` times as much:

    loss_sum = Σ filled + weight · Σ around,    count = filled + weight · around

Both are sums, so any number of ranks gives the same. In evaluation `eval_bpb` is of the bytes that are filled in, the end
token's cost included: it compares with the bits that another model needs for the same bytes, not with a text's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.data.draws import subkeys, uniforms
from shoal.data.grouping import padded
from shoal.data.sequences import Framing, Sequences
from shoal.data.special_tokens import FILL_IN, SENTINELS
from shoal.data.tokenizer import TextTokenizer
from shoal.data.words import Words
from shoal.models.loss import IGNORED, linear_cross_entropy
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.tasks.blanks import Ids, Middle, Rewritten, Spans
from shoal.tasks.projection import loss_at
from shoal.tasks.task import Batch, Found, added, on_device, scalar

LEAST = 8
"""Tokens below which a piece of a document is left out of a row."""


@dataclass
class Rows:
    """Rows that fill from the left: what is read, the targets, who sees whom, and what kind of target each is."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    low: NDArray[np.int32]
    high: NDArray[np.int32]
    filled: NDArray[np.bool_]
    aside: NDArray[np.bool_]
    read: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> "Rows":
        """Nothing but padding, each of which sees itself."""
        place = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        tokens, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        return cls(tokens, targets, place.copy(), place + 1, np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool))

    def put(self, row: int, start: int, text: Rewritten) -> int:
        """Lay a text into a row from `start`; returns where it ends."""
        end = start + len(text.tokens) - 1
        here = np.s_[row, start:end]
        self.tokens[here] = text.tokens[:-1]
        self.filled[here], self.aside[here] = text.filled[1:], text.aside[1:]
        self.targets[here] = np.where(text.filled | text.aside, text.tokens, IGNORED)[1:]
        self.low[here] = start
        self.high[row, start : start + text.prefix] = start + text.prefix
        self.read += end - start
        return end


class Infill:
    """Parts of documents are cut out and predicted at their end."""

    framing = Framing("whole", spare=1)
    least = LEAST

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer) -> None:
        self.settings = settings = recipe.infill
        if settings.context_weight == 0 and settings.rate < 1:
            raise RecipeError(
                "'infill.rate' below 1 leaves documents as they are, and 'infill.context_weight' 0 learns nothing of these: "
                "change one of them"
            )
        self.end = tokenizer.end_of_text
        self.middle: Middle | None = None
        self.spans: Spans | None = None
        if settings.form == "middle":
            prefix, suffix, middle = (tokenizer.special(name) for name in FILL_IN)
            breaks = None if settings.unit == "stretch" else line_ends(tokenizer)
            self.middle = Middle(prefix, suffix, middle, self.end, breaks)
        if self.middle is None:
            sentinels = np.array([tokenizer.special(name) for name in SENTINELS])
            if not (0 < settings.cut < 1 and settings.mean_span >= 1):
                raise RecipeError("'infill.cut' must lie between 0 and 1, and 'infill.mean_span' be 1 or more")
            self.spans = Spans(sentinels, self.end, settings.cut, settings.mean_span)
        self.bytes = torch.from_numpy(Words.of(tokenizer).bytes)

    @property
    def projected(self) -> float:
        """All, or about what is filled in: a third of a text cut at two random places."""
        if self.settings.context_weight:
            return 1.0
        return 1 / 3 if self.middle is not None else self.settings.cut

    def rewrite(self, ids: Ids, ended: bool, key: np.uint64, room: int) -> Rewritten | None:
        """A document's tokens as they are learnt, of which at most `room` are read; None where too little would be left."""
        settings = self.settings
        stretch, plain = uniforms(np.array([key]), "rewrite", 2)[0]
        rewritten = plain < settings.rate
        if not rewritten:
            length = min(len(ids), room if ended else room + 1)
        elif self.middle is not None:
            length = min(len(ids), room - self.middle.added)
        else:
            assert self.spans is not None
            length = self.spans.fitting(len(ids), room)
        if length < LEAST:
            return None
        start = int(stretch * (len(ids) - length + 1))
        ended = ended and start + length == len(ids)
        ids = ids[start : start + length]
        if not rewritten:
            whole = np.append(ids, self.end) if ended else ids
            return Rewritten.of([(whole, False, True)])
        if self.middle is not None:
            return self.middle.rewrite(ids, key, settings.suffix_first)
        assert self.spans is not None
        return self.spans.rewrite(ids, key)

    def rows(self, sequences: Sequences) -> Rows:
        """All documents of all rows, rewritten."""
        rows = Rows.empty(sequences.tokens.shape)
        for row, tokens in enumerate(sequences.tokens):
            documents = None if sequences.documents is None else sequences.documents[row]
            pieces = pieces_of(tokens, documents, self.end)
            # as far as the row would be padded by itself: where it is among longer ones depends on ranks and micro-batch
            own = int(padded(np.count_nonzero(tokens >= 0) + np.array(len(pieces) * self.framing.spare)))
            filled, room = 0, min(len(tokens), own)
            for (ids, ended), key in zip(pieces, subkeys(sequences.keys[row], len(pieces)), strict=True):
                text = self.rewrite(ids, ended, key, room - filled)
                if text is not None:
                    filled = rows.put(row, filled, text)
        return rows

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Rewritten documents and their targets."""
        rows = self.rows(sequences)
        low = on_device(rows.low, device)
        reach = Reach(low) if self.spans is None else Reach(low, on_device(rows.high, device))
        aside = rows.aside if self.settings.context_weight else np.zeros_like(rows.aside)
        return Batch(
            on_device(rows.tokens, device),
            on_device(np.where(rows.filled | aside, rows.targets, IGNORED), device),
            rows.read,
            reach,
            at=on_device(np.flatnonzero(rows.filled), device),
            aside=on_device(np.flatnonzero(aside), device),
        )

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and number of targets, those around the blanks weighted."""
        if self.settings.context_weight != 1:
            loss, count, _ = self._weighted(model, batch)
            return loss, count
        hidden_ND = model(batch.tokens, reach=batch.reach).flatten(0, 1)
        loss = linear_cross_entropy(hidden_ND, model.head_weight, batch.targets.flatten(), model.loss_kernel)
        return loss, (batch.targets != IGNORED).sum()

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss and count; of what is filled in also the loss, the number of tokens and the bytes."""
        assert batch.at is not None
        loss, count, filled = self._weighted(model, batch)
        text = self.bytes[batch.targets.flatten()[batch.at].cpu()].sum().to(loss.device)
        return {
            "loss": loss,
            "count": count,
            "filled_loss": filled,
            "filled": scalar(len(batch.at), loss.device),
            "bytes": text,
        }

    def _weighted(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, count, loss of what is filled in)."""
        assert batch.at is not None and batch.aside is not None
        weight = self.settings.context_weight
        hidden_BTD = model(batch.tokens, reach=batch.reach)
        filled = loss = loss_at(model, hidden_BTD, batch.targets, batch.at)
        if weight:
            loss = filled + weight * loss_at(model, hidden_BTD, batch.targets, batch.aside)
        count = len(batch.at) + weight * len(batch.aside)
        return loss, scalar(count, loss.device, torch.float32), filled

    def metrics(self, corpora: Sequence[Found]) -> dict[str, float]:
        """Nats a target as in training, nats a token that is filled in, and bits a byte of these."""
        sums = added(corpora)
        found = {"eval_loss": sums["loss"] / sums["count"], "eval_targets": int(sums["count"])}
        if sums["bytes"]:
            found["eval_filled_loss"] = sums["filled_loss"] / sums["filled"]
            found["eval_bpb"] = sums["filled_loss"] / math.log(2) / sums["bytes"]
        return found


def line_ends(tokenizer: TextTokenizer) -> NDArray[np.bool_]:
    """Which tokens hold a line end [vocabulary]."""
    return np.array(["\n" in tokenizer.decode([token]) for token in range(tokenizer.vocabulary)])


def pieces_of(tokens: Ids, documents: NDArray[np.int32] | None, end: int) -> list[tuple[Ids, bool]]:
    """(the text of each document in a row, whether the document ends there), without the tokens that part them."""
    real = tokens[tokens >= 0]
    borders = np.flatnonzero(real == end) + 1
    if documents is not None:
        numbers = documents[tokens >= 0]
        borders = np.union1d(borders, np.flatnonzero(numbers[1:] != numbers[:-1]) + 1)
    parts = [part for part in np.split(real, borders) if len(part)]
    texts = [(part[part != end], bool(part[-1] == end)) for part in parts]
    return [(text, ended) for text, ended in texts if len(text)]
