"""What a dry run foretells is what real ranks hold and send."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.core.errors import InputError, RecipeError
from shoal.data.shards import Corpus
from shoal.models.presets import make_config
from shoal.models.transformer import Transformer
from shoal.parallel.world import World
from shoal.train.layout import StateBytes, find_layout, one_step
from shoal.train.loop import empty_totals
from shoal.train.sizes import estimate, states_formula, transformer_config
from tests.ranks import run_ranks
from tests.train.runs import build_parts, tiny_recipe

CASES = {
    2: [("replicate", 1), ("zero1", 1), ("zero2", 1), ("zero3", 1), ("replicate", 2), ("zero1", 1, "muon")],
    4: [("zero1", 1), ("zero3", 1), ("zero2", 2), ("zero3", 2), ("zero1", 1, "muon"), ("zero3", 2, "muon")],
}


def recipe_of(corpus: Path, shard: str, tensor: int, optimizer: str = "adamw") -> Any:
    return tiny_recipe(
        corpus,
        parallel={"shard": shard, "tensor": tensor},
        train={"micro_batch": 2, "steps": 2},
        model={"hidden": 128},
        optimizer={"kind": optimizer},
    )


def really(
    world: World, corpus: Path, folder: Path, cases: list[tuple[str, int]]
) -> list[tuple[StateBytes, dict[str, int]]]:
    found = []
    for number, case in enumerate(cases):
        recipe = recipe_of(corpus, *case)
        parts = build_parts(recipe, folder / str(number), world)
        parts.telemetry.close()
        parts.sync.wire.sent.clear()
        held = one_step(recipe, parts.model, parts.sync, parts.optimizer)
        parts.sync.sum_totals(empty_totals(world, 2))
        found.append((held, dict(parts.sync.wire.sent)))
    return found


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.thorough), 4])
def test_the_foretold_bytes_are_those_of_real_ranks(corpus: Path, tmp_path: Path, ranks: int) -> None:
    real = run_ranks(ranks, really, corpus, tmp_path, CASES[ranks])
    for number, case in enumerate(CASES[ranks]):
        recipe = recipe_of(corpus, *case)
        config = transformer_config(recipe, Corpus.open(corpus).vocabulary)
        for rank in (0, ranks - 1):
            foretold = find_layout(recipe, config, ranks, rank)
            held, sent = real[rank][number]
            assert foretold.held == held, (case, rank)
            assert foretold.sent == sent, (case, rank)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shard", ["replicate", "zero1", "zero2", "zero3"])
def test_the_formula_is_near(corpus: Path, shard: str, optimizer: str) -> None:
    recipe = recipe_of(corpus, shard, 1, optimizer)
    vocabulary = Corpus.open(corpus).vocabulary
    held = find_layout(recipe, transformer_config(recipe, vocabulary), 2).held
    assert estimate(recipe, vocabulary, 2)["states_bytes"] == pytest.approx(held.total, rel=0.1)


@pytest.mark.parametrize(("shard", "tensor"), [("replicate", 1), ("zero1", 2), ("zero2", 1), ("zero3", 2)])
def test_an_encoder_s_layout_is_found(corpus: Path, shard: str, tensor: int) -> None:
    config = replace(make_config("encoder-tiny", vocabulary=500, context=16, layers=2), pooler=True)
    recipe = recipe_of(corpus, shard, tensor)
    layout = find_layout(recipe, config, 4)
    parameters = sum(parameter.numel() for parameter in Transformer(config).parameters())
    sizes = (layout.replicate, layout.shard, layout.tensor)
    assert layout.held.total == pytest.approx(states_formula(shard, "adamw", parameters, sizes), rel=0.12)


def test_many_ranks_take_no_machines(corpus: Path) -> None:
    recipe = tiny_recipe(corpus, parallel={"shard": "zero3", "tensor": 2, "shard_ranks": 8}, train={"global_batch": 64})
    layout = find_layout(recipe, transformer_config(recipe, Corpus.open(corpus).vocabulary), 64)
    assert (layout.replicate, layout.shard, layout.tensor) == (4, 8, 2)
    assert set(layout.sent) == {"all-gather", "reduce-scatter", "all-reduce"}


@pytest.mark.parametrize(
    ("keys", "ranks", "message"),
    [
        ({"tensor": 2}, 3, "parallel.tensor is 2, which does not divide 3 ranks; accepted: 1, 3"),
        ({"tensor": 4}, 4, "'parallel.tensor' is 4, which does not divide 'model.heads' \\(2\\)"),
        ({"shard": "zero3", "shard_ranks": 3}, 4, "parallel.shard_ranks is 3, which does not divide the 4 ranks"),
        ({"shard_ranks": 2}, 4, "'parallel.shard_ranks' is for 'parallel.shard' other than 'replicate'"),
        ({"exact": True, "shard": "zero1"}, 2, "set parallel.shard replicate"),
    ],
)
def test_what_cannot_be_arranged_is_told_before_a_start(corpus: Path, keys: Any, ranks: int, message: str) -> None:
    with pytest.raises((InputError, RecipeError), match=message):
        estimate(tiny_recipe(corpus, parallel=keys), 30, ranks)
