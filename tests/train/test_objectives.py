"""Masked and infill training: the same on any number of ranks, after a stop, and as `transformers` has it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from shoal.core import recipe
from shoal.core.errors import InputError, Interrupted, RecipeError
from shoal.core.files import read_json, write_json
from shoal.core.run_directory import RunDirectory
from shoal.data.prepare import prepare
from shoal.data.special_tokens import FILL_IN, MASK, SENTINELS
from shoal.train.loop import train
from shoal.train.material import pretraining
from shoal.train.run import finish
from shoal.train.sizes import estimate
from shoal.train.telemetry import read_metrics
from tests.conftest import fixed_text
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, run_training, tiny_recipe

ENCODER = {"preset": "encoder-tiny", "context": 32, "layers": 2, "dim": 32, "heads": 2, "head_dim": 16, "hidden": 48}
BERT = {"preset": "bert-mini", "context": 32, "layers": 2, "dim": 32, "heads": 2, "head_dim": 16, "hidden": 64}
DECODER = {"preset": "qwen3-tiny", "context": 32, "layers": 2, "dim": 32, "heads": 2, "hidden": 64}
TASKS: dict[str, dict[str, Any]] = {
    "masked": {"task": "masked", "model": ENCODER},
    "masked with sentence order": {"task": "masked", "model": BERT, "masked": {"unit": "span", "relation": "order"}},
    "masked with next sentence": {"task": "masked", "model": BERT, "masked": {"unit": "word", "relation": "next"}},
    "masked, documents packed": {"task": "masked", "model": ENCODER, "data": {"rows": "packed"}},
    "fill in the middle": {"task": "infill", "model": DECODER},
    "corrupted spans": {
        "task": "infill",
        "model": DECODER,
        "infill": {"form": "spans", "context_weight": 0.5},
        "data": {"rows": "packed"},
    },
}


@pytest.fixture(scope="session")
def task_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus whose tokenizer has the special tokens of all tasks."""
    folder = tmp_path_factory.mktemp("task-corpus")
    (folder / "text").mkdir()
    text = fixed_text(600)
    for number in range(12):
        (folder / "text" / f"{number}.txt").write_text(text[number * 2000 : number * 2000 + 2000])
    data = recipe.Data(sources=[str(folder / "text")], held_out=0.3)
    tokenizer = recipe.Tokenizer(kind="bpe", vocabulary=400, special=[MASK, *FILL_IN, *SENTINELS])
    prepare(data, tokenizer, folder / "prepared", workers=1)
    return folder / "prepared"


def make(name: str, corpus: Path, **sections: Any) -> recipe.Recipe:
    settings = {"train": {"steps": 6, "global_batch": 7, "micro_batch": 2, "compile": "off", "device": "cpu"}}
    return tiny_recipe(corpus, **(TASKS[name] | settings | sections))


def evaluated(
    world: Any, recipes: dict[str, recipe.Recipe], folder: Path
) -> dict[str, tuple[list[float], dict[str, float]]]:
    """(losses, the last evaluation) of each, on the main rank; in one set of processes, as starting them takes the time."""
    results = {}
    for name, made in recipes.items():
        records, _ = run_training(world, made, folder / name)
        found = read_metrics(RunDirectory(folder / name).metrics)[1][-1] if world.is_main else {}
        results[name] = ([record["loss"] for record in records], found)
    return results


DIVIDED = {
    **{name: (name, "replicate") for name in TASKS},
    "masked, zero3": ("masked", "zero3"),
    "spans, zero3": ("corrupted spans", "zero3"),
}


@pytest.fixture(scope="module")
def by_two(task_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two ranks make of each task."""
    recipes = {key: make(name, task_corpus, parallel={"shard": shard}) for key, (name, shard) in DIVIDED.items()}
    return run_ranks(2, evaluated, recipes, tmp_path_factory.mktemp("two"))[0]


@pytest.mark.parametrize("key", DIVIDED)
def test_two_ranks_learn_and_measure_as_one_does(task_corpus: Path, tmp_path: Path, by_two: Any, key: str) -> None:
    losses, reference = evaluated(alone(), {key: make(DIVIDED[key][0], task_corpus)}, tmp_path)[key]
    found_losses, found = by_two[key]
    assert found_losses == pytest.approx(losses, rel=1e-5)
    told = [name for name in reference if name.startswith("eval_") and name != "eval_seconds"]
    assert told and set(told) == {name for name in found if name.startswith("eval_") and name != "eval_seconds"}
    for name in told:
        # one answer more or less may turn by the last bit
        assert found[name] == pytest.approx(reference[name], rel=1e-5, abs=0.02 if name.endswith("accuracy") else 0), name


@pytest.mark.parametrize("name", ["masked with sentence order", "fill in the middle"])
def test_a_task_resumes_bitwise(task_corpus: Path, tmp_path: Path, name: str) -> None:
    made = make(name, task_corpus)
    _, weights = run_training(alone(), made, tmp_path / "straight")
    parts = build_parts(made, tmp_path / "stopped", alone())
    steps = parts.progress
    with pytest.raises(Interrupted):
        train(dataclasses.replace(parts, stop_requested=lambda: steps.step + 1 >= 3))
    parts.telemetry.close()
    parts = build_parts(made, tmp_path / "stopped", alone(), resume=True)
    train(parts)
    parts.telemetry.close()
    for key, value in parts.model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_the_masked_loss_is_that_of_transformers_on_the_model_that_is_written(task_corpus: Path, tmp_path: Path) -> None:
    made = make("masked", task_corpus, model=BERT)
    parts = build_parts(made, tmp_path, alone())
    metrics = train(parts)
    finish(parts, pretraining(parts.recipe, parts.sync.wire.world), RunDirectory(tmp_path), 1.0, metrics, [0])
    parts.telemetry.close()
    theirs: Any = BertForMaskedLM.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    batch = parts.task.batch(parts.batches.next_step()[0][1], torch.device("cpu"))
    parts.model.eval()
    with torch.no_grad():
        loss, count = parts.task.loss(parts.model, batch)
        expected = theirs(input_ids=batch.tokens, labels=batch.targets).loss
    assert int(count) > 5
    assert (loss / count).item() == pytest.approx(expected.item(), rel=1e-5)
    assert "fill-mask" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"task": "masked", "model": DECODER}, "task 'masked' needs a model that sees both ways"),
        ({"task": "infill", "model": ENCODER}, "task 'infill' needs a model that sees only what is before"),
        ({"task": "causal", "model": BERT}, "task 'causal' needs a model that sees only what is before"),
        ({"task": "masked", "model": ENCODER, "masked": {"relation": "order"}}, "this model has no layer for it"),
        ({"task": "masked", "model": BERT, "parallel": {"tensor": 2}}, "divide the model by --shard zero3 instead"),
    ],
)
def test_a_model_of_the_wrong_kind_is_refused_before_anything_starts(
    task_corpus: Path, sections: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        estimate(tiny_recipe(task_corpus, **sections), 400, 2)


@pytest.mark.parametrize(
    ("name", "sections", "told"),
    [
        (
            "fill in the middle",
            {},
            "the longest document has 7 tokens, and task 'infill' learns nothing of those with fewer",
        ),
        ("masked with sentence order", {}, "the longest document has 7 tokens, and task 'masked' learns nothing"),
        ("corrupted spans", {"model": DECODER | {"context": 12}}, "'model.context' is 12, and task 'infill' learns nothing"),
    ],
)
def test_a_text_of_which_nothing_would_be_learnt_is_refused_as_a_budget_of_tokens_would_never_end(
    task_corpus: Path, tmp_path: Path, name: str, sections: dict[str, Any], told: str
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(f'{{"text": "{word}"}}\n' for word in ["abcdefg", "xyz", "sea", "abcd", "hello", "w"] * 9))
    tokenizer = recipe.Tokenizer(path=str(task_corpus))
    prepare(recipe.Data(sources=[str(short)], held_out=0.3), tokenizer, tmp_path / "short", workers=1)
    made = make(name, tmp_path / "short", **sections)
    with pytest.raises(InputError, match=told):
        pretraining(made, alone())
    pretraining(make("masked", tmp_path / "short"), alone())  # which learns of them all the same


@pytest.mark.parametrize("kind", [BertForPreTraining, BertModel])
def test_a_folder_has_the_heads_of_its_weights_whatever_it_says(task_corpus: Path, tmp_path: Path, kind: Any) -> None:
    shape = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    kind(BertConfig(**shape)).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", config | {"architectures": ["BertForMaskedLM"]})  # as Google's say
    made = make("masked with sentence order", task_corpus, model={})
    made = dataclasses.replace(made, model=recipe.Model(init_from=str(tmp_path)))
    if kind is BertForPreTraining:
        assert estimate(made, 400, 1)["parameters"] == sum(p.numel() for p in kind(BertConfig(**shape)).parameters())
        return
    with pytest.raises(RecipeError, match="this one is a body alone"):
        estimate(made, 400, 1)
