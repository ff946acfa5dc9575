"""The examples of a run, divided into those that are learnt from, those that choose the model, and those that judge it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from shoal.core.errors import InputError
from shoal.core.recipe import Examples
from shoal.data.examples.example import Example, Role
from shoal.data.examples.readers import SPLITS, read_examples, splits_of
from shoal.data.readers import Faults

ADVICE = "; mend it, or leave out what can't be used: --examples.on_error skip"


@dataclass(frozen=True)
class Splits:
    """Examples of each split; `test` is empty where there are none of its own. `faults`: what was left out."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    faults: Faults


def read_splits(settings: Examples, roles: Sequence[Role]) -> Splits:
    """Read all files; `InputError` for what is wrong with one, or for a split in which nothing is."""
    if not settings.train:
        raise InputError("no examples to learn from: give their files by --data FILE, or as 'examples.train'")
    settings = _with_own_validation(settings)
    faults = Faults(settings.on_error == "skip", ADVICE)
    train, validation, test = (
        list(read_examples(files, roles, settings, faults, split))
        for split, files in (("train", settings.train), ("validation", settings.validation), ("test", settings.test))
    )
    if not settings.validation:
        train, validation = _divided(train, settings, roles)
    for name, files, split in (
        ("train", settings.train, train), ("validation", settings.validation or settings.train, validation),
        ("test", settings.test, test),
    ):  # fmt: skip
        if files:
            check_not_empty(name, files, split)
    limit = settings.limit
    return Splits(_limited(train, limit), _limited(validation, limit), _limited(test, limit), faults)


def check_not_empty(name: str, files: Sequence[str], examples: Sequence[Any]) -> None:
    """`InputError` for a split in which nothing is, or of which everything was left out."""
    if not examples:
        raise InputError(f"{', '.join(files)}: no examples for '{name}'; give more, or other files: --examples.{name}")


def _with_own_validation(settings: Examples) -> Examples:
    """A `datasets` folder that has a split for validation beside the one for training is read for both."""
    if settings.validation or not all({*SPLITS["validation"]} & {*splits_of(spec)} for spec in settings.train):
        return settings
    return cast(Examples, replace(cast(Any, settings), validation=settings.train))


def _limited(examples: list[Example], limit: int) -> list[Example]:
    """As many, evenly spread: files often have one label after the other."""
    if not limit or len(examples) <= limit:
        return examples
    return [examples[number * len(examples) // limit] for number in range(limit)]


def _divided(examples: list[Example], settings: Examples, roles: Sequence[Role]) -> tuple[list[Example], list[Example]]:
    if settings.held_out_by == "tail":
        kept = len(examples) - round(settings.held_out * len(examples))
        return examples[:kept], examples[kept:]
    held_out = [_share(example, roles) < settings.held_out for example in examples]
    return (
        [example for example, out in zip(examples, held_out, strict=True) if not out],
        [example for example, out in zip(examples, held_out, strict=True) if out],
    )


def _share(example: Example, roles: Sequence[Role]) -> float:
    """A number from 0 to 1 that the first of the roles that the example has, its input, decides alone."""
    name = next((role.name for role in roles if role.name in example.values), "")
    digest = hashlib.blake2b(repr(example.values.get(name)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
