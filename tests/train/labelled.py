"""Small fine-tuning runs: a tiny BERT, texts whose label a word decides, and the real loop."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shoal.core.model_directory import write_model_directory
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, merged
from shoal.core.run_directory import RunDirectory
from shoal.data.tokenizer import read_tokenizer
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer
from shoal.parallel.world import World
from shoal.train.finetune import finetuning, finetuning_defaults
from shoal.train.loop import Parts, train
from shoal.train.material import Material
from shoal.train.setup import build
from shoal.train.telemetry import read_metrics
from tests.conftest import WORDS

SHAPE = TransformerConfig(
    vocabulary=0, context=64, layers=3, dim=32, heads=2, kv_heads=2, head_dim=16, hidden=48, norm_epsilon=1e-6,
    activation="gelu_erf", causal=False, norm_first=False, embedding_norm=True, segments=2, dropout=0.1, pooler=True,
)  # fmt: skip


def write_encoder(folder: Path, corpus: Path) -> Path:
    """A tiny BERT with random weights, and the corpus's characters."""
    tokenizer = read_tokenizer(corpus)
    config = TransformerConfig(**{**vars(SHAPE), "vocabulary": tokenizer.vocabulary})
    model = Transformer(config).materialise().initialise(torch.Generator().manual_seed(1), std=0.2)
    content = hugging_face.config_to_hugging_face(config, tokenizer.end_of_text)
    write_model_directory(folder, content, hugging_face.weights_to_hugging_face(model), tokenizer.write, "")
    return folder


def write_texts(path: Path, count: int) -> Path:
    """Texts of one to nine words, and whether "fish" is among them."""
    choose = random.Random(3)
    texts = [choose.choices(WORDS, k=choose.randint(1, 9)) for _ in range(count)]
    path.write_text("".join(f"{' '.join(words)}\t{'fish' in words}\n" for words in texts))
    return path


def labelled_recipe(encoder: Path, data: Path, **sections: Any) -> Recipe:
    """A run of 6 steps that drops nothing; sections are merged into it."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "task": "classify",
        "model": {"init_from": str(encoder), "dropout": 0.0},
        "examples": {"train": [str(data)], "held_out": 0.2},
        "train": {"steps": 6, "global_batch": 10, "compile": "off", "device": "cpu"},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"every": 3, "patience": 0},
        "tuning": {"pooling": "mean", "dropout": 0.0},
    }
    tree = merged(tree, sections)
    return build_recipe(merged(finetuning_defaults(tree), tree))


def finetune(world: World, recipe: Recipe, folder: Path, resume: bool = False) -> tuple[Parts, Material]:
    """Train on this rank."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(folder)
    parts, material = build(recipe, run, world, resume=resume, quiet=True, gather=partial(finetuning, run=run))
    try:
        train(parts)
    finally:
        parts.telemetry.close()
    return parts, material


def losses_in(folder: Path) -> list[float]:
    """Of all steps, and all evaluations."""
    training, evaluations = read_metrics(RunDirectory(folder).metrics)
    return [line["loss"] for line in training] + [line["eval_loss"] for line in evaluations]
