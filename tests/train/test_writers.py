"""Tasks that write text, from random weights: on ranks as on one, with one tokenizer, in every division."""

import gzip
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.errors import InputError
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import World
from shoal.train.finetune import finetuning
from shoal.train.loop import train
from shoal.train.setup import build
from tests.ranks import alone, run_ranks

WORDS = {"one": "eins", "two": "zwei", "red": "rot", "fish": "Fisch", "sea": "Meer", "swims": "schwimmt"}


def write_pairs(folder: Path, count: int = 60) -> list[str]:
    """Sentences and their translations word by word, a file a language."""
    choose = random.Random(5)
    sentences = [choose.choices(list(WORDS), k=choose.randint(2, 6)) for _ in range(count)]
    files = {"text.en.gz": sentences, "text.de.gz": [[WORDS[word] for word in sentence] for sentence in sentences]}
    for name, texts in files.items():
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(" ".join(text) + "\n" for text in texts)
    return [str(folder / name) for name in files]


def tiny(files: list[str], **sections: Any) -> Recipe:
    """A small decoder that learns to translate them."""
    tree: dict[str, Any] = {
        "task": "translate",
        "examples": {"train": files, "format": "lines", "held_out": 0.2},
        "tokenizer": {"vocabulary": 290},
        "model": {"preset": "llama-tiny", "context": 48, "layers": 2, "dim": 32, "heads": 2, "hidden": 64},
        "train": {"steps": 6, "global_batch": 9, "compile": "off", "device": "cpu"},
        "optimizer": {"learning_rate": 3e-3},
        "evaluation": {"every": 3},
        "translate": {"beams": 2, "tokens": 8, "early": 4},
    }
    for name, changes in sections.items():
        tree[name] = {**tree.get(name, {}), **changes}
    return build_recipe(tree)


def trained(world: World, recipe: Recipe, folder: Path) -> tuple[dict[str, Any], str]:
    """(what the last evaluation tells, this rank's tokenizer)."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(folder)
    parts, _ = build(recipe, run, world, quiet=True, gather=partial(finetuning, run=run))
    before = parts.evaluate(parts.model, final=False)  # before any step: nothing has been gathered yet
    assert {"eval_loss", "eval_bpb", "eval_bleu"} <= before.keys()
    try:
        found = train(parts)
    finally:
        parts.telemetry.close()
    return dict(found), parts.task.tokenizer.library.to_str()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shard", ["replicate", "zero3"])
def test_two_ranks_learn_and_write_what_one_does(tmp_path: Path, shard: str) -> None:
    files = write_pairs(tmp_path)
    one, tokenizer = trained(alone(), tiny(files), tmp_path / "one")
    ranks = run_ranks(2, trained, tiny(files, parallel={"shard": shard}), tmp_path / "two")
    assert [own for _, own in ranks] == [tokenizer] * 2
    assert RunDirectory(tmp_path / "two").tokenizer.joinpath("tokenizer.json").exists()
    for found, _ in ranks:
        assert found["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
        assert (found["eval_targets"], found["eval_bleu"]) == (one["eval_targets"], pytest.approx(one["eval_bleu"]))
    predictions = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two")]
    assert predictions[0] == predictions[1]


def test_beside_an_average_the_weights_themselves_tell_their_loss_and_write_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    recipe = tiny(write_pairs(tmp_path), regular={"ema": 0.9})
    parts, _ = build(recipe, run, alone(), quiet=True, gather=partial(finetuning, run=run))
    whole: Any = parts.evaluate.evaluate  # type: ignore[attr-defined]
    loss = whole(parts.model, final=True, loss_alone=True)
    assert set(loss) == {"eval_loss", "eval_targets", "eval_bpb", "eval_seconds"} and not run.predictions.exists()
    both = parts.evaluate(parts.model, final=True)
    assert both["eval_raw_loss"] == loss["eval_loss"] == both["eval_loss"] and "eval_bleu" in both
    parts.telemetry.close()


def failing(world: World, recipe: Recipe, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError) as caught:
        finetuning(recipe, world, RunDirectory(folder))
    return str(caught.value)


def test_a_tokenizer_that_can_not_be_made_is_every_ranks_error(tmp_path: Path) -> None:
    recipe = tiny(write_pairs(tmp_path), tokenizer={"vocabulary": 5000})
    messages = run_ranks(2, failing, recipe, tmp_path / "run")
    assert messages[0] == messages[1]
    assert messages[0].startswith("the text yields only")
