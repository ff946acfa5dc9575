"""Classifiers: the same as in `transformers`, on any number of ranks, after a stop, and back from their folder."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
)

from shoal.core.errors import InputError, Interrupted
from shoal.core.native import matrices
from shoal.core.recipe import Examples, Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.examples.readers import read_examples
from shoal.data.readers import Faults
from shoal.parallel.world import World
from shoal.train.finetune import finetuning
from shoal.train.labelled_model import evaluate_labelled, read_labelled_model
from shoal.train.loop import Parts, train
from shoal.train.setup import build
from shoal.train.telemetry import read_metrics
from tests.models.shapes import fill
from tests.ranks import alone, run_ranks
from tests.train.classifiers import (
    NARROW,
    WIDE,
    finetune,
    finetune_recipe,
    sentences,
    tokenizer_of,
    write_base,
    write_sentences,
)


@pytest.fixture(autouse=True, scope="module")
def unmeasured() -> Iterator[None]:
    """No time for what MFU is measured against; and our kernels, however small the work."""
    with mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0), mock.patch.object(matrices, "LEAST_WORK", 0):
        yield


def evaluated_there(folder: Path, examples: list[dict[str, Any]], numbers: Any) -> tuple[float, torch.Tensor, Any]:
    """(loss, scores) that `transformers` gives for examples in one padded batch, framed by its own tokenizer."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )  # type: ignore[misc]
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(folder)
    framed = [tokenizer(*(row[key] for key in ("text", "text_b") if row.get(key))) for row in examples]
    inputs = tokenizer.pad(framed, return_tensors="pt")
    if "token_type_ids" in inputs and model.config.model_type != "bert":
        del inputs["token_type_ids"]
    with torch.no_grad():
        found = model.eval()(**inputs, labels=numbers)
    return found.loss.item(), found.logits, model


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert, pairs": ("bert", {}),
    "bert, several labels": ("bert", {"classify": {"several": True}}),
    "modernbert": ("modernbert", {}),
    "modernbert, mean": ("modernbert", {"tuning": {"pooling": "mean"}}),
    "gpt2, pairs": ("gpt2", {}),
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_gives_in_transformers_what_was_told_here(tmp_path: Path, case: str) -> None:
    family, sections = CASES[case]
    several = "several" in case
    data = write_sentences(tmp_path / "data.jsonl", sentences(pairs="pairs" in case, several=several))
    shape = WIDE if family != "llama" else {**WIDE, "kv_heads": 2}
    result = finetune(tmp_path / "run", finetune_recipe(write_base(tmp_path / "base", family, shape), data, **sections))
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    names = list(lines[0]["prediction"]["probabilities"])
    true = [[label in line["label"] for label in names] if several else names.index(line["label"]) for line in lines]
    labels = torch.tensor(true, dtype=torch.float32 if several else torch.int64)
    loss, scores, model = evaluated_there(tmp_path / "run" / "model", lines, labels)
    assert model.config.id2label == dict(enumerate(names))
    assert loss == pytest.approx(result["eval_loss"], rel=1e-5)
    there = scores.sigmoid() if several else scores.softmax(-1)
    told = torch.tensor([list(line["prediction"]["probabilities"].values()) for line in lines])
    torch.testing.assert_close(there, told, rtol=0, atol=1e-5)


SMALL: dict[str, Any] = {
    "max_position_embeddings": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "id2label": {0: "long", 1: "short"}, "label2id": {"long": 0, "short": 1},
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "bert": BertConfig(**SMALL),
    "modernbert": ModernBertConfig(**SMALL, local_attention=6, classifier_pooling="mean"),
    "gpt2": GPT2Config(n_positions=40, n_embd=32, n_layer=2, n_head=4, id2label=SMALL["id2label"]),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
}


@pytest.mark.parametrize("family", THEIRS)
def test_a_classifier_that_transformers_wrote_is_evaluated_as_it_does(tmp_path: Path, family: str) -> None:
    tokenizer = tokenizer_of(family)
    config = THEIRS[family]
    config.vocab_size, config.pad_token_id, config.eos_token_id = tokenizer.vocabulary, tokenizer.end_of_text, 0
    theirs = AutoModelForSequenceClassification.from_config(config)
    fill(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    rows = sentences()
    data = write_sentences(tmp_path / "data.jsonl", rows)
    tokenizer.write(tmp_path / "theirs")
    labelled = read_labelled_model(tmp_path / "theirs")
    labelled.tokenizer.write(tmp_path / "theirs")  # where it didn't say how texts are framed, it does now
    faults = Faults()
    examples = list(read_examples([str(data)], labelled.task.roles, Examples(), faults))
    found = evaluate_labelled(labelled, {"eval": examples}, faults, 16)
    numbers = torch.tensor([["long", "short"].index(row["label"]) for row in rows])
    loss, scores, _ = evaluated_there(tmp_path / "theirs", rows, numbers)
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["eval_accuracy"] == pytest.approx((scores.argmax(-1) == numbers).double().mean().item())


LAYOUTS = {"joined": WIDE, "padded": NARROW}


def parts_of(recipe: Recipe, folder: Path, world: World, resume: bool = False) -> Parts:
    run = RunDirectory(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return build(recipe, run, world, resume=resume, quiet=True, gather=partial(finetuning, run=run))[0]


def trained(world: World, recipes: dict[str, Recipe], folder: Path) -> dict[str, tuple[list[float], dict[str, Any]]]:
    """(losses, last evaluation) of each, on the main rank."""
    torch.set_num_threads(1)
    found = {}
    for name, recipe in recipes.items():
        parts = parts_of(recipe, folder / name, world)
        try:
            evaluated = train(parts)
        finally:
            parts.telemetry.close()
        records = read_metrics(RunDirectory(folder / name).metrics)[0] if world.is_main else []
        found[name] = [record["loss"] for record in records], evaluated
    return found


def test_two_ranks_learn_and_measure_as_one_does(tmp_path: Path) -> None:
    data = write_sentences(tmp_path / "data.jsonl", sentences()[:41])
    bases = {name: write_base(tmp_path / name, "bert", shape) for name, shape in LAYOUTS.items()}
    weighted = {"classify": {"weights": "balanced", "focal": 1.0}, "evaluation": {"every": 3}}
    one = trained(alone(), {name: finetune_recipe(base, data, **weighted) for name, base in bases.items()}, tmp_path / "one")
    divided: dict[str, dict[str, Any]] = {
        "replicate": {}, "zero1": {"shard": "zero1"}, "zero3": {"shard": "zero3"},
        "local": {"sync": "local", "local": {"every": 2}},
    }  # fmt: skip
    recipes = {
        f"{division}, {name}": finetune_recipe(
            base, data, **weighted, parallel=keys, train={"global_batch": 6 if division == "local" else 5}
        )
        for division, keys in divided.items()
        for name, base in bases.items()
    }
    two = run_ranks(2, trained, recipes, tmp_path / "two")
    for name, (losses, evaluated) in two[0].items():
        division, layout = name.split(", ")
        expected, reference = one[layout]
        assert evaluated | {"eval_seconds": 0} == two[1][name][1] | {"eval_seconds": 0}, name
        if division == "local":
            assert evaluated["eval_loss"] == pytest.approx(reference["eval_loss"], rel=0.05), name
            assert (
                layout == "padded" or losses[-1] < losses[0]
            )  # steps of padded rows have lengths, and labels, of their own
            continue
        assert losses == pytest.approx(expected, rel=1e-5), name
        assert evaluated["eval_loss"] == pytest.approx(reference["eval_loss"], rel=1e-5), name
        assert evaluated["eval_confusion"] == reference["eval_confusion"], name


def divided_while_evaluating(world: World, recipe: Recipe, folder: Path) -> list[bool]:
    """Whether each block's weights are back with their ranks when texts are scored, batch by batch."""
    torch.set_num_threads(1)
    parts = parts_of(recipe, folder, world)
    seen, score = [], parts.model.score_texts

    def scoring(*inputs: Any) -> torch.Tensor:
        seen.append(all(isinstance(value, DTensor) for block in parts.model.blocks for value in block.parameters()))
        return score(*inputs)

    parts.model.score_texts = scoring  # type: ignore[method-assign]
    parts.evaluate(parts.model, final=True)
    parts.telemetry.close()
    return seen


def test_an_evaluation_gathers_a_divided_model_a_block_at_a_time(tmp_path: Path) -> None:
    data = write_sentences(tmp_path / "data.jsonl", sentences()[:41])
    recipe = finetune_recipe(write_base(tmp_path / "base", "bert"), data, parallel={"shard": "zero3"})
    for seen in run_ranks(2, divided_while_evaluating, recipe, tmp_path / "run"):
        assert seen and all(seen)


def test_a_metric_that_the_task_does_not_tell_is_named_before_the_first_step(tmp_path: Path) -> None:
    data = write_sentences(tmp_path / "data.jsonl", sentences()[:41])
    recipe = finetune_recipe(write_base(tmp_path / "base", "bert"), data, evaluation={"metric": "eval_makro_f1"})
    with pytest.raises(InputError, match=r"'eval_makro_f1', which evaluations don't tell; accepted: .*eval_macro_f1"):
        parts_of(recipe, tmp_path / "run", alone())


def straight_and_resumed(recipe: Recipe, folder: Path, resumed: AbstractContextManager[object]) -> tuple[Parts, Parts]:
    """A run that never stopped, and one that stopped after two steps and went on, its parts built anew in `resumed`."""
    world = alone()
    straight = parts_of(recipe, folder / "straight", world)
    train(straight)
    stopped = parts_of(recipe, folder / "stopped", world)
    with pytest.raises(Interrupted):
        train(dataclasses.replace(stopped, stop_requested=lambda: stopped.progress.step + 1 >= 2))
    with resumed:
        again = parts_of(recipe, folder / "stopped", world, resume=True)
    train(again)
    for one in (straight, stopped, again):
        one.telemetry.close()
    return straight, again


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_resumes_bitwise(tmp_path: Path, layout: str) -> None:
    data = write_sentences(tmp_path / "data.jsonl", sentences()[:41])
    recipe = finetune_recipe(
        write_base(tmp_path / "base", "bert", LAYOUTS[layout]), data, model={"dropout": 0.1}, tuning={"dropout": 0.1}
    )
    assert recipe.model.attention_dropout == 0.0
    straight, again = straight_and_resumed(recipe, tmp_path, nullcontext())
    for (name, value), other in zip(again.model.state_dict().items(), straight.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("joined", [True, False])
def test_a_run_keeps_its_order_where_it_goes_on_with_rows_laid_out_otherwise(tmp_path: Path, joined: bool) -> None:
    data = write_sentences(tmp_path / "data.jsonl", sentences()[:41])
    recipe = finetune_recipe(write_base(tmp_path / "base", "bert"), data)
    with mock.patch("shoal.train.finetune.joins", lambda *_: joined):
        straight_and_resumed(recipe, tmp_path, resumed=mock.patch("shoal.train.finetune.joins", lambda *_: not joined))
    losses, expected = (
        [record["loss"] for record in read_metrics(RunDirectory(tmp_path / name).metrics)[0]]
        for name in ("stopped", "straight")
    )
    assert losses == pytest.approx(expected, rel=1e-4)
