"""What to change in a recipe whose memory is not there, and what each change leaves of it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shoal.core.errors import InputError
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, recipe_tree
from shoal.models.presets import PRESETS

Memory = Callable[[Recipe], int]
"""Bytes a rank; `InputError` for what can't be arranged."""

AT_WHAT_COST = {
    "train.micro_batch": "the same training, in more passes",
    "train.recompute": "the same training; a third more computing",
    "parallel.shard": "the same training; weights travel at every pass",
    "model.preset": "a smaller model",
}

TOGETHER = ("train.micro_batch", "train.recompute", "parallel.shard")
"""What changes no result can be put together."""

SHAPE = ("layers", "dim", "heads", "kv_heads", "head_dim", "hidden")
"""Of a model: a preset's own, when it is taken."""


@dataclass(frozen=True)
class Suggestion:
    """Keys to change, the memory that a rank then takes, whether it fits, and what it costs."""

    keys: dict[str, Any]
    memory: int
    fits: bool
    cost: str

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with it."""
        return changed(recipe, self.keys)


def advise(recipe: Recipe, memory: Memory, at_once: int, data_ranks: int, limit: int) -> list[Suggestion]:
    """Changes that take less memory, the mildest first, each by itself, and at last those that change no result together."""
    now, found = memory(recipe), list[Suggestion]()
    for keys in _candidates(recipe, at_once, data_ranks):
        with suppress(InputError):
            takes = memory(changed(recipe, keys))
            if takes < now:
                (key,) = keys
                found.append(Suggestion(keys, takes, takes <= limit, AT_WHAT_COST[key]))
    best = [_best(found, key) for key in TOGETHER]
    keys = {key: value for one in best if one is not None for key, value in one.keys.items()}
    if len(keys) > 1 and not any(one.fits for one in found if one.keys.keys() <= set(TOGETHER)):
        with suppress(InputError):
            takes = memory(changed(recipe, keys))
            found.append(Suggestion(keys, takes, takes <= limit, "the same training, slower"))
    return _without_needless(found)


def changed(recipe: Recipe, keys: dict[str, Any]) -> Recipe:
    """The recipe with other values at `section.key`."""
    tree = recipe_tree(recipe)
    for key, value in keys.items():
        section, name = key.split(".")
        tree[section][name] = value
        if key == "model.preset":
            tree["model"] |= dict.fromkeys(SHAPE)
    return build_recipe(tree)


def _candidates(recipe: Recipe, at_once: int, data_ranks: int) -> Iterator[dict[str, Any]]:
    size = at_once // 2
    while size and not recipe.parallel.exact:
        yield {"train.micro_batch": size}
        size //= 2
    if recipe.train.recompute != "full":
        yield {"train.recompute": "full"}
    if data_ranks > 1 and recipe.parallel.shard != "zero3":
        yield from ({"parallel.shard": kind} for kind in ("zero1", "zero2", "zero3") if kind > recipe.parallel.shard)
    if not recipe.model.init_from:
        family = recipe.model.preset.split("-")[0]
        yield from ({"model.preset": name} for name in reversed(PRESETS) if name.split("-")[0] == family)


def _best(found: list[Suggestion], key: str) -> Suggestion | None:
    return min((one for one in found if key in one.keys), key=lambda one: one.memory, default=None)


def _without_needless(found: list[Suggestion]) -> list[Suggestion]:
    """Of each kind, the mildest that fits, or the one that takes least."""
    kept: dict[tuple[str, ...], Suggestion] = {}
    for one in found:
        kind = tuple(one.keys)
        before = kept.get(kind)
        if before is None or (not before.fits and one.memory < before.memory):
            kept[kind] = one
    return list(kept.values())
