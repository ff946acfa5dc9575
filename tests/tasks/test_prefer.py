"""Task prefer: loss and gradients against a float64 formula, and the rows it takes."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shoal.core.errors import InputError
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire
from shoal.tasks import Batch, Chat, Prefer
from shoal.train.models import read_model
from tests.models.shapes import fill
from tests.ranks import alone
from tests.tasks.dialogues import pairs, tuning_recipe, write_decoder
from tests.tasks.texts import tokenizer

EXAMPLES = [Example(row, f"f.jsonl:{number}") for number, row in enumerate(pairs(20), 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("prefer") / "model")


def log_probabilities(model: Transformer, task: Prefer, example: Example) -> torch.Tensor:
    """Of both answers, by their definition, one token after the other."""
    result = []
    for (piece,) in ([piece] for piece in task.samples(example)[0]):
        logits = model.project(model(torch.from_numpy(piece.tokens)[None]))[0]
        assert piece.targets is not None
        result.append(-F.cross_entropy(logits, torch.from_numpy(piece.targets), reduction="sum"))
    return torch.stack(result)


@pytest.mark.parametrize(
    "settings",
    [{"beta": 0.3}, {"beta": 0.3, "smoothing": 0.2}, {"beta": 0.3, "loss": "ipo"}],
    ids=["DPO", "cDPO", "IPO"],
)
@pytest.mark.parametrize("layout", ["joined", "padded"])
def test_loss_and_gradients_are_those_of_the_formula_in_float64(folder: Path, settings: dict[str, Any], layout: Any) -> None:
    recipe = tuning_recipe("prefer", folder, folder, prefer=settings)
    task = Prefer(recipe, tokenizer(), 64, [])
    reference = read_model(recipe.model).double()
    model = copy.deepcopy(reference).float()
    fill(model, seed=2, scale=0.25)
    exact = copy.deepcopy(model).double()
    samples = task.completed([sample for example in EXAMPLES for sample in task.samples(example)], Wire(alone()))
    rows = LabelledRows(samples, causal=True, layout=layout)
    batch = task.batch(rows.read(np.arange(20), np.zeros(20, dtype=np.uint64)), torch.device("cpu"))
    loss, count = task.loss(model, batch)
    loss.backward()
    expected, beta = torch.zeros((), dtype=torch.float64), settings["beta"]
    for example in EXAMPLES:
        with torch.no_grad():
            before = log_probabilities(reference, task, example)
        change = log_probabilities(exact, task, example) - before
        h = change[0] - change[1]
        right, wrong = torch.sigmoid(beta * h).log(), (1 - torch.sigmoid(beta * h)).log()
        smoothing = settings.get("smoothing", 0.0)
        ipo = settings.get("loss") == "ipo"
        expected = expected + ((h - 1 / (2 * beta)) ** 2 if ipo else -(1 - smoothing) * right - smoothing * wrong)
    expected.backward()
    assert int(count) == 20 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert F.cosine_similarity(ours.grad.double().flatten(), theirs.grad.flatten(), dim=0) > 1 - 1e-8, name
        assert ours.grad.norm().item() == pytest.approx(theirs.grad.norm().item(), rel=1e-4), name


def test_the_reference_prefers_nothing_over_itself(folder: Path) -> None:
    recipe = tuning_recipe("prefer", folder, folder)
    task, model = Prefer(recipe, tokenizer(), 64, []), read_model(recipe.model).eval()
    samples = task.completed([sample for example in EXAMPLES[:3] for sample in task.samples(example)], Wire(alone()))
    read: Batch = task.batch(
        LabelledRows(samples, causal=True).read(np.arange(3), np.zeros(3, dtype=np.uint64)), torch.device("cpu")
    )
    outputs = task.outputs(model, read, final=True)
    assert outputs == pytest.approx([0.0] * 6, abs=1e-5)
    told = task.predict(EXAMPLES[:3], [outputs[:2], [0.5, 0.25], [0.0, 1.0]])
    measured = task.measure(EXAMPLES[:3], told)
    assert (measured["accuracy"], measured["margin"]) == (pytest.approx(1 / 3, abs=0.34), pytest.approx(-0.25, abs=1e-5))


def test_turns_are_taken_with_the_prompt_or_with_all_before_them(folder: Path) -> None:
    recipe = tuning_recipe("prefer", folder, folder)
    chat = Chat(recipe, tokenizer(), 64, []).tokenizer
    task = Prefer(recipe, chat, 64, [])
    asked, said, other = (
        {"role": role, "content": text} for role, text in (("user", "the"), ("assistant", "sea"), ("assistant", "fish"))
    )
    ways: list[dict[str, Any]] = [
        {"prompt": "the", "chosen": [said], "rejected": [other]},
        {"prompt": [asked], "chosen": "sea", "rejected": "fish"},
        {"prompt": "the", "chosen": [asked, said], "rejected": [asked, other]},
    ]
    found = [[piece.tokens.tolist() for piece in task.samples(Example(way, "f:1"))[0]] for way in ways]
    assert found[0] == found[1] == found[2]
    assert chat.decode(found[0][0]) == "<|user|>the<|end|><|assistant|>sea"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "a"}, "chosen and rejected are the same answer"),
        ({"chosen": " ", "rejected": "a"}, "the chosen answer is empty"),
        ({"chosen": 3, "rejected": "a"}, "the chosen is neither text nor a list of turns"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "the prompt is neither text nor a list of turns"),
        ({"chosen": [{"role": "assistant", "content": " "}], "rejected": "a"}, "chosen: turn 2 is empty"),
        ({"chosen": [{"role": "bot", "content": "a"}], "rejected": "a"}, "chosen: turn 1 has the role 'bot'"),
        (
            {"chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}], "rejected": "b"},
            "chosen and rejected answer different prompts",
        ),
    ],
)
def test_rows_that_prefer_nothing_are_refused_with_their_place(folder: Path, row: dict[str, Any], message: str) -> None:
    recipe = tuning_recipe("prefer", folder, folder)
    task = Prefer(recipe, Chat(recipe, tokenizer(), 64, []).tokenizer, 64, [])
    with pytest.raises(InputError, match=message) as refused:
        task.samples(Example({"prompt": "q", **row}, "f.jsonl:4"))
    assert str(refused.value).startswith("f.jsonl:4: ")


def test_a_model_without_a_template_takes_texts_only(folder: Path) -> None:
    task = Prefer(tuning_recipe("prefer", folder, folder), tokenizer(), 64, [])
    with pytest.raises(InputError, match="has no chat template: tune it by task chat first"):
        task.samples(Example({"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}, "f:1"))
