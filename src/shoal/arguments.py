"""Words of the command line to a verb's `Arguments` and, where it takes a recipe, `--section.key value` overrides."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Set
from types import ModuleType
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from shoal.core.recipe_file import recipe_keys

RECIPE_WORDS = {part for key, *_ in recipe_keys() for part in key.split(".")}
"""Sections and keys by themselves: `--steps` is meant for the recipe too, whose reader names `train.steps`."""


SHORT = {
    "--shard": "--parallel.shard",
    "--tensor": "--parallel.tensor",
    "--megabits": "--parallel.link.megabits",
    "--on-error": "--data.on_error",
}
"""Recipe keys that are typed so often that they go without their section; a verb may have a `SHORT` of its own."""

LISTS = {f"--{key}" for key, accepted, *_ in recipe_keys() if accepted.startswith("a list")}


def parse(verb: str, command: ModuleType, words: list[str]) -> tuple[Any, list[str]]:
    """(the verb's `Arguments`, overrides); exits with 2 after a message for words that are not understood."""
    options = {field.name for field in dataclasses.fields(command.Arguments)}
    takes_recipe = "recipe" in options
    own: dict[str, str] = getattr(command, "SHORT", {})
    rest, overrides = _split(words, SHORT | own, RECIPE_WORDS - options) if takes_recipe else (words, [])
    try:
        arguments = tyro.cli(command.Arguments, args=rest, prog=f"shoal {verb}", description=command.__doc__)
    except SystemExit as leaving:
        if takes_recipe and leaving.code in (0, None):
            _print_recipe_keys()
        raise
    return arguments, overrides


def _split(words: list[str], short: Mapping[str, str], bare: Set[str]) -> tuple[list[str], list[str]]:
    """Take out recipe keys: words that begin with -- and have a dot, or a recipe's word (`bare`), and the value after them.

    Several values of a `short` key that is a list are its items.
    """
    rest: list[str] = []
    overrides: list[str] = []
    pending = list(reversed(words))
    while pending:
        key, equals, value = pending.pop().partition("=")
        listed = short.get(key) in LISTS
        key = short.get(key, key)
        word = key + equals + value
        if key.startswith("--") and ("." in key or key[2:].replace("-", "_") in bare):
            overrides.append(word)
            if "=" not in word:
                values = [pending.pop()] if pending else []
                while listed and pending and not pending[-1].startswith("-"):
                    values.append(pending.pop())
                overrides += [json.dumps(values, ensure_ascii=False)] if len(values) > 1 else values
        else:
            rest.append(word)
    return rest, overrides


def _print_recipe_keys() -> None:
    table = Table("key", "default", "meaning", title="recipe keys, in the recipe's file or as --section.key value", box=None)
    shorter = {key: f", {short}" for short, key in SHORT.items()}
    for key, accepted, default, meaning in recipe_keys():
        choices = f" ({accepted})" if "," in accepted else ""
        names = f"--{key}{shorter.get(f'--{key}', '')}"
        table.add_row(names, "" if default in (None, "", []) else str(default), meaning + choices)
    Console(file=sys.stdout).print(table)
