"""What to change where memory is short: the mildest first, each with its own numbers."""

from typing import Any

import pytest

from shoal.core.recipe_file import build_recipe
from shoal.plan.advice import advise, changed
from shoal.plan.table import seconds, sentences, size
from shoal.train.sizes import estimate


def recipe_of(**sections: Any) -> Any:
    return build_recipe({"train": {"steps": 5, "global_batch": 16}, "model": {"preset": "gpt2-medium"}, **sections})


def memory(ranks: int) -> Any:
    return lambda recipe: estimate(recipe, 50_257, ranks)["memory_bytes"]


def test_each_change_tells_what_a_rank_then_takes() -> None:
    recipe = recipe_of()
    for one in advise(recipe, memory(1), 16, 1, 9 * 10**9):
        assert one.memory == memory(1)(one.apply(recipe)) < memory(1)(recipe)
        assert one.fits == (one.memory <= 9 * 10**9)


def test_smaller_passes_come_first_and_only_as_small_as_needed() -> None:
    recipe = recipe_of()
    whole, half, quarter = (memory(1)(changed(recipe, {"train.micro_batch": count})) for count in (16, 8, 4))
    assert advise(recipe, memory(1), 16, 1, half + 1)[0].keys == {"train.micro_batch": 8}
    assert advise(recipe, memory(1), 16, 1, quarter + 1)[0].keys == {"train.micro_batch": 4}
    assert whole > half > quarter


def test_dividing_the_model_is_for_several_ranks_and_another_preset_the_last_resort() -> None:
    recipe = recipe_of()
    alone = [[*one.keys] for one in advise(recipe, memory(1), 16, 1, 10**9)]
    together = [[*one.keys] for one in advise(recipe, memory(4), 4, 4, 10**9)]
    assert ["parallel.shard"] not in alone
    assert ["parallel.shard"] in together
    assert together[-1] == ["train.micro_batch", "train.recompute", "parallel.shard"]
    small = [one for one in advise(recipe, memory(1), 16, 1, 10**9) if [*one.keys] == ["model.preset"]]
    assert [one.keys["model.preset"] for one in small] == ["gpt2-small"]


def test_what_can_not_be_arranged_is_not_suggested() -> None:
    recipe = recipe_of(optimizer={"kind": "onebit_adam"}, parallel={"codec": {"kind": "sign"}})
    assert all("parallel.shard" not in one.keys for one in advise(recipe, memory(4), 4, 4, 10**9))
    recipe = recipe_of(optimizer={"kind": "muon"})
    assert any("parallel.shard" in one.keys for one in advise(recipe, memory(4), 4, 4, 10**9))


def test_two_sentences_say_whether_it_fits_and_what_to_do() -> None:
    recipe = recipe_of()
    assert sentences("notes", 65.0, 10**9, 4 * 10**9, []).startswith("It fits, and takes 65 s. Start it with")
    assert sentences(None, 65.0, 10**9, 4 * 10**9, []) == "It fits, and takes 65 s."
    assert "That is nearly all" in sentences("notes", 65.0, 10**9, 11 * 10**8, [])
    found = advise(recipe, memory(1), 16, 1, 12 * 10**9)
    told = sentences("notes", None, 14 * 10**9, 12 * 10**9, found)
    assert told.startswith("It does not fit: it takes 14.00 GB of memory, and 12.00 GB are free. The mildest change")
    assert "--train.micro_batch" in told
    assert "Nothing that Shoal could change" in sentences("notes", None, 10**10, 1, [])


@pytest.mark.parametrize(
    ("value", "told"), [(0.0123, "12 ms"), (2.345, "2.3 s"), (65.0, "65 s"), (600.0, "10.0 min"), (9000.0, "2.5 h")]
)
def test_times_are_told_in_units_that_suit_them(value: float, told: str) -> None:
    assert seconds(value) == told


def test_sizes_are_told_in_units_that_suit_them() -> None:
    assert [size(count) for count in (12, 1.5e3, 2e6, 3.25e9)] == ["12 B", "1.50 kB", "2.00 MB", "3.25 GB"]
