"""Blanks: nothing is lost, everything is where the form says, and the loss is over what is filled in."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shoal.core.errors import RecipeError
from shoal.core.recipe_file import build_recipe
from shoal.data.sequences import Sequences
from shoal.data.special_tokens import FILL_IN, SENTINELS
from shoal.models.loss import IGNORED
from shoal.tasks.blanks import Middle, Spans, composition
from shoal.tasks.infill import Infill, pieces_of
from tests.models.shapes import GPT2, random_model
from tests.tasks.texts import tokenizer, windows

CPU = torch.device("cpu")
END = tokenizer().end_of_text
PRE, SUF, MID = (tokenizer().special(name) for name in FILL_IN)
SENTINEL_IDS = np.array([tokenizer().special(name) for name in SENTINELS])
KEYS = st.integers(0, 2**64 - 1).map(np.uint64)


def task(**keys: Any) -> Infill:
    return Infill(build_recipe({"task": "infill", "infill": keys}), tokenizer())


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 80), key=KEYS, suffix_first=st.sampled_from([0.0, 1.0]))
def test_prefix_middle_and_suffix_are_the_text(length: int, key: np.uint64, suffix_first: float) -> None:
    ids = np.arange(1000, 1000 + length)
    text = Middle(PRE, SUF, MID, END).rewrite(ids, key, suffix_first)
    tokens = text.tokens.tolist()
    assert len(tokens) == length + 4
    middle = text.tokens[text.filled][:-1].tolist()
    assert tokens[-1] == END and text.filled[-1]
    hole, fill = tokens.index(SUF), tokens.index(MID)
    assert tokens[0] == PRE
    if suffix_first:
        assert hole == 1
        suffix, prefix = tokens[2:fill], tokens[fill + 1 : len(tokens) - 1 - len(middle)]
    else:
        prefix, suffix = tokens[1:hole], tokens[hole + 1 : fill]
    assert prefix + middle + suffix == ids.tolist()
    assert np.array_equal(text.aside, ~text.filled)
    assert text.prefix == 0


def test_a_line_is_cut_out_between_two_line_ends() -> None:
    breaks = np.zeros(8, dtype=bool)
    breaks[0] = True
    ids = np.array([1, 2, 0, 0, 3, 4, 5, 0, 6])
    cut = Middle(PRE, SUF, MID, END, breaks)
    texts = [cut.rewrite(ids, np.uint64(key), 0.5) for key in range(60)]
    middles = {tuple(text.tokens[text.filled][:-1].tolist()) for text in texts}
    assert middles == {(1, 2), (3, 4, 5), (6,)}
    without = Middle(PRE, SUF, MID, END, np.ones(8, dtype=bool)).rewrite(ids, np.uint64(1), 0.0)
    assert np.array_equal(without.tokens, Middle(PRE, SUF, MID, END).rewrite(ids, np.uint64(1), 0.0).tokens)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(2, 200), key=KEYS, share=st.floats(0.05, 0.9), mean=st.floats(1, 8))
def test_spans_in_place_of_their_sentinels_are_the_text(length: int, key: np.uint64, share: float, mean: float) -> None:
    ids = np.arange(1000, 1000 + length)
    form = Spans(SENTINEL_IDS, END, share, mean)
    text = form.rewrite(ids, key)
    cut, spans = form.sizes(length)
    assert len(text.tokens) - 1 == length + 2 * spans
    assert form.fitting(length, length + 2 * spans) == length
    left, right = text.tokens[: text.prefix].tolist(), text.tokens[text.prefix : -1].tolist()
    assert [token for token in left if token in SENTINEL_IDS] == SENTINEL_IDS[:spans].tolist()
    filling: dict[int, list[int]] = {}
    for token in right:
        if token in SENTINEL_IDS:
            filling[token] = []
        else:
            list(filling.values())[-1].append(token)
    assert all(filling.values()) and len(filling) == spans
    assert sum(map(len, filling.values())) == cut
    whole = [part for token in left for part in filling.get(token, [token])]
    assert whole == ids.tolist()
    # everything after the first sentinel is learnt, the end too
    assert np.flatnonzero(text.filled).tolist() == list(range(text.prefix + 1, len(text.tokens)))
    assert not text.aside.any()


def test_all_compositions_are_as_likely() -> None:
    random = np.random.default_rng(1)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(3000):
        parts = tuple(composition(5, 3, random.random(4)).tolist())
        counts[parts] = counts.get(parts, 0) + 1
    assert len(counts) == 6 and all(sum(parts) == 5 for parts in counts)
    assert all(abs(count - 500) < 110 for count in counts.values())


def test_documents_of_a_row_are_told_apart_by_their_end_and_by_their_number() -> None:
    tokens = np.array([1, 2, END, 3, 4, 5, 6, END, -1])
    documents = np.array([0, 0, 0, 1, 1, 2, 2, 2, -1], dtype=np.int32)
    found = [(ids.tolist(), ended) for ids, ended in pieces_of(tokens, documents, END)]
    assert found == [([1, 2], True), ([3, 4], False), ([5, 6], True)]
    assert [ids.tolist() for ids, _ in pieces_of(tokens, None, END)] == [[1, 2], [3, 4, 5, 6]]


@pytest.mark.parametrize("form", ["middle", "spans"])
def test_rows_are_full_and_every_piece_sees_itself_alone(form: str) -> None:
    rows = windows(20, 128)
    tokens = rows.tokens.copy()
    tokens[:, 50] = END
    laid = task(form=form).rows(Sequences(tokens, rows.following, rows.keys))
    assert laid.read > 0.95 * tokens.size
    place = np.arange(128)
    assert (laid.low <= place).all() and (laid.high > place).all()
    for row in range(20):
        starts = np.unique(laid.low[row])
        assert len(starts) >= 2
        for low, high in zip(laid.low[row], laid.high[row], strict=True):
            following = starts[starts > low]
            assert high <= (following[0] if len(following) else 128)


@pytest.mark.parametrize("form", ["middle", "spans"])
def test_a_row_is_rewritten_alike_however_far_it_is_padded(form: str) -> None:
    infill = task(form=form, rate=1.0, cut=0.5, mean_span=1.0)  # sentinels for half of the text, for which there is no room
    rows = windows(8, 96)
    tokens = np.where(np.arange(96) < 31, rows.tokens, -1)
    tokens[:, [0, 30]] = END
    near, far = (infill.rows(Sequences(tokens[:, :width], rows.following[:, :width], rows.keys)) for width in (32, 96))
    assert near.read == far.read > 7 * 28
    for name in ("tokens", "targets", "filled", "aside", "high"):
        assert np.array_equal(getattr(near, name), getattr(far, name)[:, :32]), name


def test_what_is_blanked_depends_on_the_rows_key_alone() -> None:
    rows, infill = windows(6, 64), task()
    together = infill.rows(rows)
    for row in range(6):
        alone = Sequences(*(array[row : row + 1] for array in (rows.tokens, rows.following, rows.keys)))
        assert np.array_equal(infill.rows(alone).tokens[0], together.tokens[row])
    assert not np.array_equal(infill.rows(replace(rows, keys=rows.keys + np.uint64(1))).tokens, together.tokens)


@pytest.mark.parametrize("form", ["middle", "spans"])
@pytest.mark.parametrize("weight", [1.0, 0.0, 0.3])
def test_loss_is_the_weighted_sum_of_the_plain_formula(form: str, weight: float) -> None:
    infill = task(form=form, context_weight=weight, rate=1.0)
    model = random_model(replace(GPT2, vocabulary=tokenizer().vocabulary, context=64))
    batch = infill.batch(windows(3, 64), CPU)
    assert batch.at is not None and batch.reach is not None
    loss_sum, count = infill.loss(model, batch)
    logits = model.project(model(batch.tokens, reach=batch.reach)).flatten(0, 1)
    each = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="none")
    weights = torch.full_like(each, weight)
    weights[batch.at] = 1
    weights[batch.targets.flatten() == IGNORED] = 0
    torch.testing.assert_close(loss_sum, (weights * each).sum(), rtol=1e-5, atol=1e-5)
    assert float(count) == pytest.approx(float(weights.sum()))
    sums = infill.sums(model, batch)
    torch.testing.assert_close(sums["loss"], loss_sum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums["filled_loss"], each[batch.at].sum(), rtol=1e-5, atol=1e-5)
    filled = batch.targets.flatten()[batch.at]
    text = [token for token in filled.tolist() if token not in tokenizer().special_tokens.values()]
    assert sums["bytes"] == len(tokenizer().decode(text).encode())


def test_a_prefix_sees_itself_both_ways_and_the_spans_what_is_before() -> None:
    infill = task(form="spans")
    model = random_model(replace(GPT2, vocabulary=tokenizer().vocabulary, context=64))
    batch = infill.batch(windows(1, 64), CPU)
    assert batch.reach is not None and batch.reach.high is not None
    prefix = int(batch.reach.high[0, 0])
    assert 40 < prefix < 60
    hidden = model(batch.tokens, reach=batch.reach)

    def changed(place: int) -> torch.Tensor:
        tokens = batch.tokens.clone()
        tokens[0, place] = (tokens[0, place] + 1) % tokenizer().vocabulary
        return (model(tokens, reach=batch.reach) - hidden)[0].abs().amax(1) > 1e-6

    assert changed(prefix - 1)[:prefix].all()
    late = changed(prefix + 1)
    assert not late[: prefix + 1].any() and late[prefix + 1 : prefix + 3].all()


def test_settings_that_learn_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="learns nothing of these"):
        task(rate=0.5, context_weight=0.0)
    with pytest.raises(RecipeError, match=r"'infill\.cut' must lie between 0 and 1"):
        task(form="spans", cut=1.0)
