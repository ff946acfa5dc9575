"""Masked tokens: the right share, whole units, BERT's replacements; the same for a row wherever it is read."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shoal.core.errors import RecipeError
from shoal.core.recipe_file import build_recipe
from shoal.data.sequences import Sequences, row_keys
from shoal.models.loss import IGNORED
from shoal.tasks.masked import Masked
from tests.models.shapes import BERT, random_model
from tests.tasks.texts import tokenizer, windows

CPU = torch.device("cpu")
MASK = tokenizer().special("mask")


def task(**settings: Any) -> Masked:
    return Masked(build_recipe({"task": "masked", "masked": settings}), tokenizer())


def within(found: int, of: int, share: float) -> bool:
    """Whether a count is within five standard deviations of what a throw of dice gives."""
    return abs(found - share * of) <= 5 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_share_and_replacements_are_berts(unit: str) -> None:
    rows = windows(300, 128)
    batch = task(unit=unit).batch(rows, CPU)
    targets, read = batch.targets.numpy(), batch.tokens.numpy()
    masked = targets != IGNORED
    size = rows.tokens.size
    # the share is kept row by row, hence much closer than chance would
    assert abs(masked.sum() / size - 0.15) < 0.003
    assert np.array_equal(targets[masked], rows.tokens[masked])
    assert np.array_equal(read[~masked], rows.tokens[~masked])
    count = masked.sum() if unit != "span" else masked.sum() // 6  # tokens of a span are replaced alike
    for found, share in (((read == MASK)[masked].mean(), 0.8), ((read == targets)[masked].mean(), 0.1)):
        assert within(round(found * count), count, share)
    assert batch.at is not None
    assert torch.equal(batch.at, (batch.targets.flatten() != IGNORED).nonzero()[:, 0])


def test_every_ordinary_token_may_stand_in_and_no_special_one_does() -> None:
    settings = task(masked=0.0, random=1.0, rate=1.0)
    read = settings.batch(windows(300, 128), CPU).tokens.numpy()
    special = {tokenizer().end_of_text, *tokenizer().special_tokens.values()}
    assert set(np.unique(read)) == set(range(tokenizer().vocabulary)) - special


def test_special_tokens_and_padding_are_never_masked() -> None:
    rows = windows(40, 64)
    tokens = rows.tokens.copy()
    tokens[:, ::7] = tokenizer().end_of_text
    tokens[:, 1::7] = MASK
    tokens[:, 50:] = -1
    for unit in ("token", "word", "span"):
        masks = task(unit=unit, rate=1.0).mask(tokens, None, rows.keys)[1]
        text = np.ones(64, dtype=bool)
        text[::7] = text[1::7] = text[50:] = False
        assert not masks[:, ~text].any()
        assert masks[:, text].mean() > (0.99 if unit == "token" else 0.8)


def test_words_are_masked_whole() -> None:
    rows = windows(100, 128)
    whole = task(unit="word")
    masked = whole.mask(rows.tokens, None, rows.keys)[1]
    assert whole.words is not None
    continues = whole.words.continues(rows.tokens)
    assert continues.sum() > 1000
    assert np.array_equal(masked[:, 1:][continues[:, 1:]], masked[:, :-1][continues[:, 1:]])
    single = task().mask(rows.tokens, None, rows.keys)[1]
    assert (single[:, 1:] != single[:, :-1])[continues[:, 1:]].any()


def test_spans_have_lengths_of_a_geometric_distribution_cut_off_at_ten_words() -> None:
    rows = windows(400, 256)
    spans = task(unit="span", rate=0.05)  # so few that hardly two touch
    masked = spans.mask(rows.tokens, None, rows.keys)[1]
    assert spans.words is not None
    begins = ~spans.words.continues(rows.tokens)
    found = []
    for mask, begin in zip(masked, begins, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
        # those at an end of the row are cut
        found += [begin[low:high].sum() for low, high in edges.reshape(-1, 2) if low > 0 and high < len(mask)]
        assert all(begin[low] for low in edges[::2])
    lengths = np.bincount(found, minlength=11)[1:11]
    shares = 0.2 * 0.8 ** np.arange(10)
    expected = shares / shares.sum()
    assert sum(found) / len(found) == pytest.approx((expected * np.arange(1, 11)).sum(), rel=0.05)  # 3.8
    assert all(within(int(count), len(found), share) for count, share in zip(lengths, expected, strict=True))


def test_no_unit_crosses_a_border_between_documents() -> None:
    rows = windows(50, 64)
    documents = np.repeat(np.arange(8, dtype=np.int32), 8)[None].repeat(50, axis=0)
    word = task(unit="word")
    first = word.mask(rows.tokens, documents, rows.keys)[1][:, 8::8]
    last = word.mask(rows.tokens, documents, rows.keys)[1][:, 7:-1:8]
    joined = word.words.continues(rows.tokens)[:, 8::8] if word.words else None
    assert (first != last)[joined].any()


def test_masks_depend_on_seed_epoch_and_sample_alone() -> None:
    rows = windows(8, 64)
    masked = task(unit="span")
    together = masked.batch(rows, CPU)
    for row in range(8):
        alone = Sequences(*(array[row : row + 1] for array in (rows.tokens, rows.following, rows.keys)))
        assert torch.equal(masked.batch(alone, CPU).tokens[0], together.tokens[row])
    samples = np.arange(8, dtype=np.int64)
    for seed, epoch in ((2, 0), (1, 1)):
        other = replace(rows, keys=row_keys(seed, np.full_like(samples, epoch), samples))
        assert not torch.equal(masked.batch(other, CPU).targets, together.targets)


def test_loss_and_accuracy_are_those_of_the_plain_formula() -> None:
    model = random_model(replace(BERT, vocabulary=tokenizer().vocabulary, context=64))
    batch = task().batch(windows(4, 64), CPU)
    loss_sum, count = task().loss(model, batch)
    logits = model.project(model(batch.tokens)).flatten(0, 1)
    targets = batch.targets.flatten()
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(loss_sum, expected, rtol=1e-5, atol=1e-5)
    sums = task().sums(model, batch)
    assert sums["loss"] == loss_sum
    assert sums["count"] == count == (targets != IGNORED).sum()
    assert sums["correct"] == (logits.argmax(-1) == targets).sum()
    got, wanted = (torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in (loss_sum, expected))
    for mine, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_a_loss_depends_neither_on_padding_nor_on_the_other_documents_of_a_row(unit: str) -> None:
    model = random_model(replace(BERT, vocabulary=tokenizer().vocabulary, context=64))
    rows, masked = windows(1, 64), task(unit=unit)
    documents = np.repeat(np.array([0, 1, -1], dtype=np.int32), [20, 24, 20])[None]
    tokens = np.where(documents < 0, -1, rows.tokens)
    batch = masked.batch(Sequences(tokens, rows.following, rows.keys, documents), CPU)
    hidden = model(batch.tokens, reach=batch.reach)
    alone = model(batch.tokens[:, 20:44])
    torch.testing.assert_close(hidden[:, 20:44], alone, rtol=1e-4, atol=1e-5)
    assert batch.read == 44
    padded = masked.batch(Sequences(np.where(documents == 0, rows.tokens, -1), rows.following, rows.keys), CPU)
    torch.testing.assert_close(
        model(padded.tokens, reach=padded.reach)[:, :20], model(padded.tokens[:, :20]), rtol=1e-4, atol=1e-5
    )


def test_a_row_without_text_has_no_targets_and_a_gradient_of_zero() -> None:
    model = random_model(replace(BERT, vocabulary=tokenizer().vocabulary, context=64))
    none = np.full((1, 65), -1, dtype=np.int64)
    batch = task().batch(Sequences.of_windows(none), CPU)
    loss_sum, count = task().loss(model, batch)
    assert (loss_sum, count) == (0, 0)
    loss_sum.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.embedding.parameters())


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"masked": 0.9, "random": 0.2}, "1 at most together"), ({"rate": 0.0}, "nothing would be learnt")],
)
def test_shares_that_make_no_sense_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        task(**settings)
