"""One recipe run with several seeds: what of its figures is the method's, and what chance.

Every run has a folder of its own, NAME-seed-S; one that is finished is not run again.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError
from shoal.core.files import read_json, write_json
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, merged, recipe_tree
from shoal.core.run_directory import RunDirectory

Result = dict[str, Any]


def changed(recipe: Recipe, **sections: Any) -> Recipe:
    """The recipe with some of its keys at other values; `RecipeError` for what they don't allow."""
    return build_recipe(merged(recipe_tree(recipe), sections))


def run_seeds(recipe: Recipe, count: int, runs: Path, train: Callable[[Recipe], Result], anew: bool) -> dict[str, Any]:
    """Train with `count` seeds from the recipe's on; {figure: its mean, standard deviation and values}, and the runs."""
    if count < 2:
        raise InputError(f"--seeds is {count}; accepted: a whole number from 2")
    results = []
    for seed in range(recipe.seed, recipe.seed + count):
        one = changed(recipe, seed=seed, name=f"{recipe.name}-seed-{seed}")
        done = RunDirectory(runs / one.name).result
        results.append(read_json(done) if done.exists() and not anew else train(one))
    summary = {"seeds": count, "runs": [result["run"] for result in results], "figures": figures(results)}
    write_json(runs / f"{recipe.name}-seeds.json", summary)
    return summary


def figures(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each number that evaluations of all runs tell: mean, standard deviation (of a sample), and values."""
    names = [
        name
        for name, value in results[0].items()
        if name.startswith(("eval_", "test_"))
        and isinstance(value, int | float)
        and not name.endswith(("_seconds", "_targets"))
    ]
    found = {name: [float(result[name]) for result in results] for name in names if all(name in one for one in results)}
    return {
        name: {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "values": values}
        for name, values in found.items()
    }
