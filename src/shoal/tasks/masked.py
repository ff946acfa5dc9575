"""Find the words behind the mask (BERT, Devlin et al. 2019, arXiv:1810.04805).

A share of a row's tokens are targets; of these 80% are read as the mask token, 10% as another one, 10% as they are, so that
the model can't know which tokens it needn't look at. Masks are dynamic (RoBERTa, Liu et al. 2019): drawn anew in every epoch
from the row's key, on no rank otherwise than on another. Only masked places go through the vocabulary's projection.

The loss is a mean over masked tokens. It is no perplexity of the text, and no bits per byte follow from it: every token is
predicted from both sides, so the predictions don't multiply to the probability of a text. What can be compared is
`eval_loss` and `eval_accuracy` of models with one tokenizer and one way of masking.

With `masked.relation`, rows are two texts, and the pooled first token tells how they are related (`tasks.relations`). That
loss has another count: one a row. Both become one sum by a fixed weight, the number of tokens that are masked in a full row:

    loss_sum = Σ masked + weight · rate · context · Σ relation,    count = number of masked tokens

Divided by the count of the whole global batch this is BERT's sum of two means, up to the fluctuation of how many tokens a
row has; the weight is the same everywhere, so it is the same on any number of ranks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.data.sequences import Framing, Sequences
from shoal.data.shards import TokenStream
from shoal.data.tokenizer import TextTokenizer
from shoal.data.words import Words, special_ids
from shoal.models.loss import IGNORED
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.tasks.masking import Replacement, borders, choose, replace_masked, span_begins
from shoal.tasks.projection import correct_at, loss_at
from shoal.tasks.relations import LEAST, Relations
from shoal.tasks.task import Batch, Found, added, on_device, scalar


class Masked:
    """Masked tokens are the targets, predicted from all of their document."""

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, streams: Sequence[TokenStream] = ()) -> None:
        self.settings = settings = recipe.masked
        if settings.masked + settings.random > 1:
            raise RecipeError(
                f"'masked.masked' ({settings.masked}) and 'masked.random' ({settings.random}) are shares of the same "
                "tokens: 1 at most together"
            )
        if settings.rate == 0:
            raise RecipeError("'masked.rate' is 0: nothing would be learnt; BERT's is 0.15")
        special = special_ids(tokenizer)
        self.eligible = np.ones(tokenizer.vocabulary, dtype=bool)
        self.eligible[special] = False
        ordinary = np.flatnonzero(self.eligible)
        self.replacement = Replacement(tokenizer.special("mask"), ordinary, settings.masked, settings.random)
        self.words = None if settings.unit == "token" else Words.of(tokenizer)
        begin, end = tokenizer.special("begin"), tokenizer.end_of_text
        self.framing = Framing("whole", begin, end, spare=int(settings.relation != "none"))
        self.least = 1 if settings.relation == "none" else LEAST
        self.relations = None if settings.relation == "none" else Relations(settings.relation, begin, end, special, streams)

    @property
    def projected(self) -> float:
        """The share that is masked."""
        return self.settings.rate

    def mask(
        self, tokens: NDArray[np.int64], documents: NDArray[np.int32] | None, keys: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(what is read, which tokens are targets), of rows [rows, length]."""
        settings = self.settings
        real = np.maximum(tokens, 0)
        # clipped: a model may have more words than its tokenizer
        eligible = (tokens >= 0) & np.take(self.eligible, real, mode="clip")
        begins = eligible
        if self.words is not None:
            border = borders(tokens, eligible, documents)
            begins = eligible & (border | ~self.words.continues(real))
            if settings.unit == "span":
                begins = span_begins(begins, border, keys, settings.span_end, settings.longest_span)
        masked, unit = choose(begins, eligible, keys, settings.rate)
        together = unit if settings.unit == "span" else None
        return replace_masked(real, masked, keys, self.replacement, together), masked

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Inputs in which some tokens are replaced, and these as targets."""
        tokens, documents, segments, relations = sequences.tokens, sequences.documents, None, None
        if self.relations is not None:
            tokens, segments, relations = self.relations.rows(tokens, documents, sequences.keys, sequences.corpora)
            documents = None
        read, masked = self.mask(tokens, documents, sequences.keys)
        return Batch(
            on_device(read, device),
            on_device(np.where(masked, tokens, IGNORED), device),
            int((tokens >= 0).sum()),
            reach_both_ways(tokens, documents, device),
            None if segments is None else on_device(segments, device),
            at=on_device(np.flatnonzero(masked), device),
            relations=None if relations is None else on_device(relations, device),
        )

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss, that of relations weighted, and the number of masked tokens."""
        assert batch.at is not None
        hidden_BTD = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
        loss_sum = loss_at(model, hidden_BTD, batch.targets, batch.at)
        if batch.relations is not None:
            # not what these rows are padded to: that depends on which rows a rank computes together
            weight = self.settings.relation_weight * self.settings.rate * model.config.context
            loss_sum = loss_sum + weight * self._related(model, hidden_BTD, batch.relations)[0]
        return loss_sum, _number(len(batch.at), loss_sum)

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss, count and right answers of masked tokens; the same of relations."""
        assert batch.at is not None
        hidden_BTD = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
        loss_sum = loss_at(model, hidden_BTD, batch.targets, batch.at)
        correct = correct_at(model, hidden_BTD, batch.targets, batch.at)
        sums = {"loss": loss_sum, "count": _number(len(batch.at), loss_sum), "correct": correct}
        if batch.relations is not None:
            loss_sum, count, correct = self._related(model, hidden_BTD, batch.relations)
            sums |= {"relation_loss": loss_sum, "relation_count": count, "relation_correct": correct}
        return sums

    def metrics(self, corpora: Sequence[Found]) -> dict[str, float]:
        """Nats a masked token, and the share of them of which the likeliest token is the right one."""
        sums = added(corpora)
        count = sums["count"]
        found = {
            "eval_loss": sums["loss"] / count,
            "eval_accuracy": sums["correct"] / count,
            "eval_targets": int(count),
        }
        if pairs := sums.get("relation_count"):
            found["eval_relation_loss"] = sums["relation_loss"] / pairs
            found["eval_relation_accuracy"] = sums["relation_correct"] / pairs
        return found

    def _related(self, model: Transformer, hidden_BTD: Tensor, relations_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(summed loss, rows that count, right answers)."""
        assert model.relation is not None
        logits = model.relation(model.pool(hidden_BTD)).float()
        loss_sum = F.cross_entropy(logits, relations_B, reduction="sum", ignore_index=IGNORED)
        return loss_sum, (relations_B != IGNORED).sum(), (logits.argmax(-1) == relations_B).sum()


def reach_both_ways(tokens: NDArray[np.int64], documents: NDArray[np.int32] | None, device: torch.device) -> Reach | None:
    """Who sees whom: all of a document, but no padding; None where that is all of a row."""
    padding = tokens < 0
    if documents is None:
        some = padding.any(axis=1) & ~padding.all(axis=1)
        return Reach.of_documents(on_device(padding.astype(np.int32), device), causal=False) if some.any() else None
    return Reach.of_documents(on_device(np.where(padding, -1, documents), device), causal=False)


def _number(count: int, like: Tensor) -> Tensor:
    return scalar(count, like.device, torch.int64)
