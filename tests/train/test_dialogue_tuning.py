"""Chat and preferences: the same on any number of ranks and after a stop, and what is written."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.core.errors import CorpusError, Interrupted
from shoal.core.files import read_json
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import World
from shoal.train.finetune import finetuning
from shoal.train.loop import Parts, train
from shoal.train.material import Material
from shoal.train.run import finish
from shoal.train.setup import build
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.tasks.dialogues import dialogues, pairs, tuning_recipe, write_decoder, write_rows

ROWS = {"chat": dialogues(19), "prefer": pairs(19)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder without a template, and rows of both tasks."""
    folder = tmp_path_factory.mktemp("dialogues")
    write_decoder(folder / "decoder")
    for task, rows in ROWS.items():
        write_rows(folder / f"{task}.jsonl", rows)
    return folder


def make(task: str, folder: Path, **sections: Any) -> Recipe:
    return tuning_recipe(task, folder / "decoder", folder / f"{task}.jsonl", **sections)


def parts_of(recipe: Recipe, folder: Path, world: World, resume: bool = False) -> tuple[Parts, Material]:
    run = RunDirectory(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return build(recipe, run, world, resume=resume, quiet=True, gather=partial(finetuning, run=run))


def tuned(world: World, recipes: dict[str, Recipe], folder: Path) -> dict[str, tuple[list[float], dict[str, Any]]]:
    """(losses, the last evaluation) of each, on the main rank."""
    torch.set_num_threads(1)
    results = {}
    for name, recipe in recipes.items():
        parts, _ = parts_of(recipe, folder / name, world)
        evaluated = train(parts)
        parts.telemetry.close()
        if world.is_main:
            losses = [record["loss"] for record in read_metrics(RunDirectory(folder / name).metrics)[0]]
            results[name] = losses, evaluated
    return results


def test_two_ranks_learn_and_measure_as_one_does_however_the_model_is_divided(folder: Path, tmp_path: Path) -> None:
    shards = ("replicate", "zero3")
    recipes = {f"{task}-{shard}": make(task, folder, parallel={"shard": shard}) for task in ROWS for shard in shards}
    one = write_rows(folder / "one.jsonl", ROWS["chat"][:1])  # of which only one rank has a share
    recipes["chat-one"] = make("chat", folder, parallel={"shard": "zero3"}, examples={"validation": [str(one)]})
    found = run_ranks(2, tuned, recipes, tmp_path / "two")[0]
    assert found.pop("chat-one")[1]["eval_bpb"] > 0
    for task in ROWS:
        losses, evaluated = tuned(alone(), {task: make(task, folder)}, tmp_path / "one")[task]
        for shard in shards:
            others, measured = found[f"{task}-{shard}"]
            assert others == pytest.approx(losses, rel=1e-5)
            del measured["eval_seconds"]
            for name in measured:
                assert measured[name] == pytest.approx(evaluated[name], rel=1e-4, abs=1e-5), name
            predicted = [
                (tmp_path / run / "predictions.jsonl").read_text().count("\n")
                for run in (f"two/{task}-{shard}", f"one/{task}")
            ]
            assert predicted[0] == predicted[1] > 3


def weights(parts: Parts) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parts.model.state_dict().items()}


@pytest.mark.parametrize("task", list(ROWS))
def test_a_stopped_run_goes_on_bitwise(folder: Path, tmp_path: Path, task: str) -> None:
    """For preferences that shows too that the reference is not what the weights have become by then."""
    recipe = make(task, folder, evaluation={"every": 0})
    straight, _ = parts_of(recipe, tmp_path / "straight", alone())
    train(straight)
    stopped, _ = parts_of(recipe, tmp_path / "stopped", alone())
    progress = stopped.progress
    with pytest.raises(Interrupted):
        train(dataclasses.replace(stopped, stop_requested=lambda: progress.step + 1 >= 3))
    stopped.telemetry.close()
    going_on, _ = parts_of(recipe, tmp_path / "stopped", alone(), resume=True)
    train(going_on)
    for parts in (straight, going_on):
        parts.telemetry.close()
    expected = weights(straight)
    assert all(torch.equal(value, expected[name]) for name, value in weights(going_on).items())
    write_rows(folder / "other.jsonl", ROWS[task][:-1] + ROWS[task][:1])
    other = make(task, folder, evaluation={"every": 0}, examples={"train": [str(folder / "other.jsonl")]})
    with pytest.raises(CorpusError):
        parts_of(other, tmp_path / "stopped", alone(), resume=True)


def test_what_is_written_talks_in_transformers_as_it_was_taught_here(folder: Path, tmp_path: Path) -> None:
    recipe = make("chat", folder)
    parts, material = parts_of(recipe, tmp_path, alone())
    finish(parts, material, RunDirectory(tmp_path), 1.0, train(parts), [0])
    parts.telemetry.close()
    before = read_json(folder / "decoder" / "config.json")["vocab_size"]
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert model.config.vocab_size == before + 4 == len(theirs)
    assert theirs.convert_ids_to_tokens(model.generation_config.eos_token_id) == "<|end|>"
    text = theirs.apply_chat_template(ROWS["chat"][1]["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert text == f"<|user|>{ROWS['chat'][1]['messages'][0]['content']}<|end|><|assistant|>"
    assert any("4 new tokens" in note for note in material.notes)
