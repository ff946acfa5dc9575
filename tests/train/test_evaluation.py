"""Held-out loss over the whole split, the same on any number of ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shoal.data.batches import evaluation_rows
from shoal.data.rows import StreamRows
from shoal.data.shards import Corpus
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, tiny_recipe


@pytest.mark.parametrize("context", [7, 16, 50, 5000])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_token_but_the_first_is_a_target_exactly_once(corpus: Path, context: int, world: int) -> None:
    stream = Corpus.open(corpus).split("held_out")
    targets: list[int] = []
    for rank in range(world):
        for rows in evaluation_rows(StreamRows(stream, context, partial=True), 4, rank, world):
            assert rows.tokens.shape == (4, context)
            targets += rows.following[rows.following >= 0].tolist()
    whole = stream.windows(np.array([0]), stream.tokens)[0]
    assert sorted(targets) == sorted(whole[1:].tolist())


def evaluate(world: World, corpus: Path, folder: Path) -> dict[str, float]:
    parts = build_parts(tiny_recipe(corpus, evaluation={"final_sequences": 0}), folder, world)
    parts.telemetry.close()
    return parts.evaluate(parts.model)


def test_the_loss_is_the_mean_over_the_whole_split_on_any_number_of_ranks(corpus: Path, tmp_path: Path) -> None:
    parts = build_parts(tiny_recipe(corpus), tmp_path / "reference", alone())
    parts.telemetry.close()
    stream, context = Corpus.open(corpus).split("held_out"), 16
    tokens = torch.from_numpy(stream.windows(np.array([0]), stream.tokens)[0])
    total = 0.0
    with torch.no_grad():
        for start in range(0, stream.tokens - 1, context):
            piece = tokens[start : start + context + 1]
            logits = parts.model.project(parts.model(piece[None, :-1])).double()
            total += F.cross_entropy(logits[0], piece[1:], reduction="sum").item()
    expected = total / (stream.tokens - 1)
    for size in (1, 2, 3):
        for result in run_ranks(size, evaluate, corpus, tmp_path / str(size)):
            assert result["eval_targets"] == stream.tokens - 1
            assert result["eval_loss"] == pytest.approx(expected, rel=1e-6)
            assert result["eval_bpb"] == pytest.approx(expected / math.log(2) * (stream.tokens - 1) / stream.bytes, rel=1e-6)
