"""Rows of two texts: in order, exchanged, or with other text."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shoal.core.errors import InputError
from shoal.core.recipe_file import build_recipe
from shoal.data.sequences import Sequences
from shoal.models.loss import IGNORED
from shoal.tasks.masked import Masked
from shoal.tasks.relations import Relations
from tests.models.shapes import BERT, random_model
from tests.tasks.texts import tokenizer, windows

END = tokenizer().end_of_text
CLS = 7
NO_TEXT: Any = None  # the masked task has no need of it
CPU = torch.device("cpu")


class Elsewhere:
    """A stream of one token again and again."""

    tokens = 1000

    def __init__(self, token: int = 9) -> None:
        self.token = token

    def windows(self, starts: Any, length: int) -> Any:
        return np.full((len(starts), length), self.token)


def test_two_texts_are_one_cut_in_two_and_perhaps_exchanged() -> None:
    rows = windows(200, 64)
    tokens, segments, relations = Relations("order", CLS, END, np.array([END])).rows(rows.tokens, None, rows.keys)
    assert 70 < relations.sum() < 130
    for row in range(200):
        real = tokens[row][tokens[row] >= 0]
        first, second = np.flatnonzero(real == END)
        assert real[0] == CLS and second == len(real) - 1
        parts = [real[1:first], real[first + 1 : second]]
        assert segments[row].tolist() == [0] * (first + 1) + [1] * (second - first) + [0] * (64 - len(real))
        whole = np.concatenate(parts[::-1] if relations[row] else parts)
        assert np.array_equal(whole, rows.tokens[row][:61])


def test_what_does_not_follow_comes_from_anywhere_in_the_split() -> None:
    rows = windows(50, 64)
    stream: Any = Elsewhere()
    tokens, segments, relations = Relations("next", CLS, END, np.array([END]), [stream]).rows(rows.tokens, None, rows.keys)
    for row, relation in enumerate(relations):
        second = tokens[row][segments[row] == 1][:-1]
        assert (second == 9).all() == bool(relation)
    with pytest.raises(InputError, match="takes other text from a corpus"):
        Relations("next", CLS, END, np.array([END]))


def test_of_a_mixture_other_text_comes_from_the_rows_own_corpus() -> None:
    rows, streams = windows(50, 64), [Elsewhere(9), Elsewhere(11)]
    made: Any = Relations("next", CLS, END, np.array([END]), streams)  # type: ignore[arg-type]
    corpora = np.arange(50) % 2
    tokens, segments, relations = made.rows(rows.tokens, None, rows.keys, corpora)
    seen = {
        (corpora[row], int(token)) for row in np.flatnonzero(relations) for token in tokens[row][segments[row] == 1][:-1]
    }
    assert seen == {(0, 9), (1, 11)}


def test_a_row_keeps_its_longest_document_and_one_too_short_has_no_relation() -> None:
    rows = windows(1, 64)
    documents = np.repeat(np.array([0, 1, -1], dtype=np.int32), [20, 30, 14])[None]
    tokens = np.where(documents < 0, -1, rows.tokens)
    laid, _, relations = Relations("order", CLS, END, np.array([END])).rows(tokens, documents, rows.keys)
    assert sorted(laid[0][laid[0] >= 0]) == sorted([CLS, END, END, *rows.tokens[0, 20:50]])
    assert relations[0] in (0, 1)
    short = np.where(documents == 0, rows.tokens, -1)
    short[:, 5:] = -1
    assert Relations("order", CLS, END, np.array([END])).rows(short, None, rows.keys)[2][0] == IGNORED


def test_both_losses_are_one_sum_by_a_weight_that_is_the_same_everywhere() -> None:
    recipe = build_recipe({"task": "masked", "masked": {"relation": "order", "relation_weight": 0.5}})
    task = Masked(recipe, tokenizer())
    model = random_model(replace(BERT, vocabulary=tokenizer().vocabulary, context=64, relation=True))
    rows = windows(6, 64)
    batch = task.batch(rows, CPU)
    assert batch.segments is not None and batch.relations is not None and model.relation is not None
    loss_sum, count = task.loss(model, batch)
    hidden = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
    masked = F.cross_entropy(
        model.project(hidden).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    related = F.cross_entropy(model.relation(model.pool(hidden)), batch.relations, reduction="sum")
    torch.testing.assert_close(loss_sum, masked + 0.5 * 0.15 * 64 * related, rtol=1e-5, atol=1e-5)
    # in two batches it is the same sum
    halves = [
        Sequences(*(array[part] for array in (rows.tokens, rows.following, rows.keys))) for part in (np.s_[:2], np.s_[2:])
    ]
    parts = [task.loss(model, task.batch(half, CPU)) for half in halves]
    torch.testing.assert_close(sum(part[0] for part in parts), loss_sum, rtol=1e-5, atol=1e-5)
    assert sum(part[1] for part in parts) == count
    # nor does it matter how far rows are padded
    short = np.where(np.arange(64) < 37, rows.tokens, -1)
    near, far = (
        task.loss(model, task.batch(Sequences(short[:, :width], rows.following[:, :width], rows.keys), CPU))
        for width in (40, 64)
    )
    torch.testing.assert_close(near[0], far[0], rtol=1e-5, atol=1e-5)
    found = task.metrics([({name: value.item() for name, value in task.sums(model, batch).items()}, NO_TEXT)])
    assert found["eval_relation_loss"] == pytest.approx(related.item() / 6, rel=1e-5)
