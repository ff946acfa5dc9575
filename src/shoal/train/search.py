"""Hyper-parameters by trial: runs of one recipe with other values of some keys, which earlier trials suggest (`optuna`).

What is tried is the recipe's `search`: by key, a list of values to choose among, or `{low: …, high: …, log: true}`. Trials
are kept in RUNS/NAME-search/trials.log as they end, so a search that was stopped goes on where it was.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError, RecipeError
from shoal.core.files import make_folder, write_json
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, merged, recipe_keys, recipe_tree
from shoal.core.seeds import derive_seed

Result = dict[str, Any]
Space = Mapping[str, Any]

USUAL: dict[str, dict[str, Any]] = {
    "optimizer.learning_rate": {"times": [0.2, 5.0], "log": True},
    "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
    "train.global_batch": {"choices": [16, 32, 64]},
    "tuning.dropout": {"low": 0.0, "high": 0.4},
}
"""What is tried where the recipe doesn't say; `times`: around its own value."""


def space_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Each key, and what is tried; `RecipeError` for a key that there isn't, or a range that is none."""
    known = {key: default for key, _, default, _ in recipe_keys()}
    space: dict[str, dict[str, Any]] = {}
    for key, tried in (recipe.search or USUAL).items():
        if key not in known:
            raise RecipeError(f"'search' names '{key}', which is no key of a recipe; shoal finetune --help lists them")
        space[key] = _checked(key, {"choices": tried} if isinstance(tried, list) else dict(tried), recipe)
    return space


def _checked(key: str, tried: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    if tried.get("choices"):
        return tried
    if "times" in tried:
        own = _value(recipe_tree(recipe), key)
        low, high = tried.pop("times")
        tried |= {"low": low * own, "high": high * own}
    if not (isinstance(tried.get("low"), int | float) and isinstance(tried.get("high"), int | float)):
        raise RecipeError(f"'search' of '{key}' needs a list of values, or 'low' and 'high'")
    if not tried["low"] < tried["high"] or (tried.get("log") and tried["low"] <= 0):
        raise RecipeError(f"'search' of '{key}': {tried['low']} to {tried['high']} is no range that can be searched")
    return tried


def search(
    recipe: Recipe, trials: int, runs: Path, metric: str, train: Callable[[Recipe], Result], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run until `trials` are done in all; what was tried, best first. A run's folder is NAME-trial-N."""
    if trials < 1:
        raise InputError(f"--search is {trials}; accepted: a whole number above 0")
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise InputError("--search needs the package optuna: pip install 'shoal[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, falling = space_of(recipe), metric.endswith(("loss", "bpb"))
    folder = runs / f"{recipe.name}-search"
    make_folder(folder)
    study = optuna.create_study(
        study_name=recipe.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "trials.log"))),
        direction="minimize" if falling else "maximize",
        load_if_exists=True,
    )
    for number in range(len(study.trials), trials):
        # each trial draws from numbers of its own, also in a search that goes on
        study.sampler = optuna.samplers.TPESampler(seed=derive_seed(recipe.seed, "search", number) % 2**32)
        trial = study.ask()
        values = {key: _suggested(trial, key, tried) for key, tried in space.items()}
        name = f"{recipe.name}-trial-{trial.number}"
        result = train(build_recipe(merged(recipe_tree(recipe), _tree({**values, "name": name}))))
        study.tell(trial, float(result[metric]))
        told = ", ".join(f"{key.rpartition('.')[2]} {_shown(value)}" for key, value in values.items())
        tell(f"trial {trial.number + 1} of {trials}: {metric} {result[metric]:.4f} with {told}; best {study.best_value:.4f}")
    valued = [(trial.value, trial) for trial in study.trials if trial.value is not None]
    ended = [trial for _, trial in sorted(valued, key=lambda pair: pair[0], reverse=not falling)]
    found = [{"trial": trial.number, metric: trial.value, **trial.params} for trial in ended]
    best = ended[0]
    flags = " ".join(f"--{key} {_shown(value)}" for key, value in best.params.items())
    summary = {"metric": metric, "best": found[0], "again": flags, "trials": found}
    write_json(folder / "result.json", summary)
    return summary


def _suggested(trial: Any, key: str, tried: Mapping[str, Any]) -> Any:
    if "choices" in tried:
        return trial.suggest_categorical(key, list(tried["choices"]))
    low, high, log = tried["low"], tried["high"], bool(tried.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=log)
    return trial.suggest_float(key, low, high, log=log)


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        node = tree
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def _value(tree: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
