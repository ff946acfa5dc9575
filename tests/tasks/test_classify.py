"""Labels of texts: what is minimised, against formulas in float64; what is told of predictions, against scikit-learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shoal.core.errors import InputError, RecipeError
from shoal.core.recipe_file import build_recipe
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows
from shoal.tasks.classify import Classify
from tests.models.shapes import BERT, random_model
from tests.tasks.texts import tokenizer


def examples(labels: list[Any]) -> list[Example]:
    return [Example({"text": f"the shoal {number}", "label": label}, f"f:{number}") for number, label in enumerate(labels)]


def make(given: list[Any], smoothing: float = 0.0, **settings: Any) -> Classify:
    recipe = build_recipe({"task": "classify", "classify": settings, "regular": {"label_smoothing": smoothing}})
    return Classify(recipe, tokenizer(), 32, examples(given))


LABELS = ["b", "a", "c", "a", "a", "b", "a", "a"]
SEVERAL = [["a"], ["a", "b"], [], ["c"], ["a", "c"], ["a"], [], ["b"]]


def log_softmax(scores: Any) -> Any:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("focal", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_one_label_is_the_formula_s(focal: float, weights: str, smoothing: float) -> None:
    task = make(LABELS, smoothing, focal=focal, weights=weights)
    random = np.random.default_rng(1)
    scores, true = random.normal(0, 3, (8, 3)), np.array([task.labels.index(label) for label in LABELS])
    logs = log_softmax(scores)
    right = logs[np.arange(8), true]
    soft = (1 - smoothing) * right + smoothing * logs.mean(1)
    # 5 of 8 are a, 2 b, 1 c: all three weigh 8 / 3 together
    each = np.array([8 / 15, 8 / 6, 8 / 3])[true] if weights == "balanced" else np.ones(8)
    expected = -each * (1 - np.exp(right)) ** focal * soft
    found = task.losses(torch.tensor(scores), torch.tensor(true)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    plain = task.cross_entropies(torch.tensor(scores), torch.tensor(true)).numpy()
    np.testing.assert_allclose(plain, -right, rtol=1e-12)


@pytest.mark.parametrize("focal", [0.0, 2.0])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_loss_of_several_labels_is_the_formula_s(focal: float, weights: str) -> None:
    task = make(SEVERAL, 0.1, several=True, focal=focal, weights=weights)
    scores = np.random.default_rng(1).normal(0, 3, (8, 3))
    true = np.array([[label in its for label in "abc"] for its in SEVERAL], dtype=np.float64)
    probability = 1 / (1 + np.exp(-scores))
    soft = true * 0.9 + 0.05
    each = np.array([4 / 4, 6 / 2, 6 / 2]) if weights == "balanced" else np.ones(3)
    losses = -(each * soft * np.log(probability) + (1 - soft) * np.log(1 - probability))
    missed = np.where(true == 1, 1 - probability, probability)
    found = task.losses(torch.tensor(scores), torch.tensor(true)).numpy()
    np.testing.assert_allclose(found, losses * missed**focal, rtol=1e-6)


def test_the_gradient_is_finite_where_an_answer_is_certain() -> None:
    scores = torch.tensor([[90.0, 0.0], [-90.0, 0.0]], requires_grad=True)
    make(["a", "b", "a", "b"], focal=0.5).losses(scores, torch.tensor([0, 0])).sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_mixed_texts_are_told_as_both_of_a_pair() -> None:
    recipe = build_recipe({"task": "classify", "augment": {"mixup": 0.4}})
    given = examples(LABELS)
    task = Classify(recipe, tokenizer(), 32, given)
    shape = replace(BERT, vocabulary=tokenizer().vocabulary, context=32, head="sequence", outputs=3, transform=False,
                    head_bias=False)  # fmt: skip
    model = random_model(shape).train()
    rows = LabelledRows([task.samples(example)[0] for example in given], causal=False)
    batch = task.batch(rows.read(np.arange(8), np.zeros(8, dtype=np.uint64)), torch.device("cpu"))
    assert batch.pieces is not None
    torch.manual_seed(5)
    loss, count = task.loss(model, batch)
    torch.manual_seed(5)
    share, other = float(torch.distributions.Beta(0.4, 0.4).sample()), torch.randperm(8)
    hidden = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments).flatten(0, 1)
    first = hidden[batch.pieces.starts]
    mixed = torch.tanh(model.pooler(share * first + (1 - share) * first[other])) if model.pooler is not None else first
    assert model.task_head is not None
    logs, labels = model.task_head.score(mixed).log_softmax(1), batch.pieces.values["label"]
    expected = -(share * logs[range(8), labels] + (1 - share) * logs[range(8), labels[other]]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert int(count) == 8
    with torch.no_grad():
        assert task.loss(model.eval(), batch)[0] == pytest.approx(task.sums(model, batch)["loss"].item())


def predictions(task: Classify, true: list[Any], scores: Any) -> dict[str, Any]:
    given = examples(true)
    return task.measure(given, task.predict(given, [[row] for row in scores]))


def test_figures_are_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    random = np.random.default_rng(2)
    task = make(["a", "b", "c", "d"] * 3)
    true = random.choice(["a", "b", "c"], 60).tolist()  # d never occurs, but is told
    scores = random.random((60, 4))
    told = [task.labels[number] for number in scores.argmax(1)]
    found = predictions(task, true, scores)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, told))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(true, told, average="macro"))
    assert found["confusion"] == metrics.confusion_matrix(true, told, labels=task.labels).tolist()
    precision, recall, f1, count = metrics.precision_recall_fscore_support(true, told, labels=task.labels, zero_division=0)
    for place, figures in enumerate(found["labels"].values()):
        expected = precision[place], recall[place], f1[place], count[place]
        assert list(figures.values()) == pytest.approx(expected)
    never = predictions(make(["a", "b", "e"] * 2), ["a", "b"], np.eye(3)[:2])
    assert never["macro_f1"] == 1.0  # what neither occurs nor is told has no part in the mean


def test_figures_of_several_labels_are_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    random = np.random.default_rng(3)
    task = make(SEVERAL, several=True)
    scores, marked = random.random((60, 3)), random.random((60, 3)) < 0.4
    true = [[label for label, has in zip("abc", row, strict=True) if has] for row in marked]
    found = predictions(task, true, scores)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(marked, scores >= 0.5))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(marked, scores >= 0.5, average="macro"))
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(marked, scores >= 0.5, average="micro"))


@pytest.mark.parametrize(
    ("given", "settings", "names", "numbers"),
    [
        ([2, 10, "1", 2.0] * 2, {}, ["1", "2", "10"], [1, 2, 0, 1]),
        ([True, False] * 2, {}, ["false", "true"], [1, 0]),
        ([" b", "a "] * 2, {}, ["a", "b"], [1, 0]),
        ([0, 1, "good"], {"labels": ["bad", "good"]}, ["bad", "good"], [0, 1, 1]),
        ([1, 2], {"labels": ["2", "1"]}, ["2", "1"], [1, 0]),
        (['["x", 3]', [], "", ["3"], "x"] * 2, {"several": True}, ["3", "x"], [[0, 1], [], [], [0], [1]]),
    ],
)
def test_labels_may_be_texts_numbers_and_lists(
    given: list[Any], settings: Any, names: list[str], numbers: list[Any]
) -> None:
    task = make(given, **settings)
    assert task.labels == names
    for example, expected in zip(examples(given), numbers, strict=False):
        assert sorted(task.numbers_of(example)) == (expected if isinstance(expected, list) else [expected])


@pytest.mark.parametrize(
    ("label", "settings", "told"),
    [
        ("c", {}, r"f:0: unknown label 'c'; the labels are: a, b\. Others are added by --classify\.labels"),
        (2, {}, r"f:0: the label 2 is out of range: there are 2, from 0 \(a\) to 1 \(b\)"),
        (-1, {}, r"f:0: the label -1 is out of range"),
        (2, {"labels": ["3", "4"]}, "f:0: unknown label '2'"),
        (None, {}, "f:0: the label is missing"),
        ("", {}, "f:0: the label is missing"),
        (0.5, {}, r"f:0: the label is 0\.5; accepted: a text, or a whole number"),
        (["a"], {}, r"f:0: the label is a list; several labels a text: --classify\.several true"),
        ('["a"]', {}, r"f:0: the label is a list"),
        ("['a']", {"several": True}, r"""f:0: the labels "\['a'\]" are not a list in JSON, as \["one", "other"\]"""),
    ],
)
def test_what_is_no_label_is_told_with_its_place(label: Any, settings: dict[str, Any], told: str) -> None:
    task = make(["a", "b"] * 2, **({"labels": ["a", "b"]} | settings))
    with pytest.raises(InputError, match=told):
        task.samples(examples([label])[0])


def test_labels_that_nothing_can_be_learnt_from_are_refused() -> None:
    with pytest.raises(InputError, match=r"have one label, a: there is nothing to tell apart\. Is it the right column\?"):
        make(["a"] * 4)
    with pytest.raises(InputError, match=r"40 different labels \(0, .*, 11 and 28 more\) for 41 training examples are too"):
        make([*range(40), 39])
    with pytest.raises(InputError, match=r"3 different labels .* for 2 training examples"):
        make(["a", "b"], labels=["a", "b", "c"])
    with pytest.raises(RecipeError, match=r"'classify\.labels' names 'a' twice"):
        make(["a", "b"], labels=["a", "a"])


def test_long_texts_lose_their_end_and_are_counted() -> None:
    task = make(["a", "b"] * 2)
    (piece,) = task.samples(Example({"text": "the shoal swims " * 40, "label": "a"}, "f:1"))[0]
    whole = tokenizer().encode("the shoal swims " * 40)
    assert piece.tokens[1:-1].tolist() == whole[:30].tolist()
    assert (task.framed.count, task.framed.cut) == (1, 1)
    (pair,) = task.samples(Example({"text": "sea " * 40, "text_b": "mind", "label": "b"}, "f:2"))[0]
    second = tokenizer().encode("mind").tolist()
    assert len(pair.tokens) == 32 and pair.tokens[-1 - len(second) : -1].tolist() == second
    with pytest.raises(InputError, match=r"f:3: the text_b is empty"):
        task.samples(Example({"text": "sea", "text_b": " ", "label": "b"}, "f:3"))


@pytest.mark.parametrize("changes", [{"weights": "balanced"}, {"focal": 2.0}, {"smoothing": 0.1}, {}])
def test_an_evaluation_tells_what_training_minimises_beside_the_plain_loss(changes: dict[str, Any]) -> None:
    given = examples(LABELS)
    smoothing = {"label_smoothing": changes.get("smoothing", 0.0)}
    settings = {key: value for key, value in changes.items() if key != "smoothing"}
    recipe = build_recipe({"task": "classify", "classify": settings, "regular": smoothing})
    task = Classify(recipe, tokenizer(), 32, given)
    shape = replace(BERT, vocabulary=tokenizer().vocabulary, context=32, head="sequence", outputs=3, transform=False,
                    head_bias=False)  # fmt: skip
    model = random_model(shape).eval()
    rows = LabelledRows([task.samples(example)[0] for example in given], causal=False)
    batch = task.batch(rows.read(np.arange(8), np.zeros(8, dtype=np.uint64)), torch.device("cpu"))
    with torch.no_grad():
        sums = {name: float(value) for name, value in task.sums(model, batch).items()}
        minimised = float(task.loss(model, batch)[0])
    figures = task.figures(sums)
    if changes:
        assert figures["minimised_loss"] == pytest.approx(minimised / 8) != pytest.approx(figures["loss"])
    else:
        assert set(figures) == {"loss", "targets"} and figures["loss"] == pytest.approx(minimised / 8)
    named = build_recipe({"task": "classify", "classify": settings | {"labels": ["a", "b", "c"]}, "regular": smoothing})
    with torch.no_grad():  # a model that is read back knows of no training
        assert set(Classify(named, tokenizer(), 32, []).sums(model, batch)) == {"loss", "count"}
