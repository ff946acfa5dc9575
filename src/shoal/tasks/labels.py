"""Labels, as files have them, and their numbers.

A label is a text or a whole number; several of one text are a list of such, or the list's JSON in a cell. Where labels have
names, a file may have their numbers instead, as the tables of many collections do.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from shoal.core.errors import InputError, RecipeError
from shoal.data.examples.example import Example

SHOWN = 12
"""Labels that a message names, at most."""

COLUMN = "Is it the right column? --examples.columns '{label: COLUMN}'"


class Numbering:
    """The numbers of labels with these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.numbers = {name: number for number, name in enumerate(names)}
        # names that are numbers themselves are not told by their place
        self.by_place = not any(map(_is_whole, names))

    def find(self, label: str) -> int | None:
        """The number of a label by its name, or by its place; None where it is neither."""
        if label in self.numbers:
            return self.numbers[label]
        return int(label) if self.by_place and _is_whole(label) and 0 <= int(label) < len(self.names) else None

    def number(self, label: str, where: str) -> int:
        """The number of a label; `InputError` for an unknown one."""
        number = self.find(label)
        if number is not None:
            return number
        if self.by_place and _is_whole(label):
            raise InputError(
                f"{where}: the label {label} is out of range: there are {len(self.names)}, from 0 ({self.names[0]}) to "
                f"{len(self.names) - 1} ({self.names[-1]}); all are named by --classify.labels"
            )
        raise InputError(
            f"{where}: unknown label '{label}'; the labels are: {shown(self.names)}. Others are added by --classify.labels"
        )


def check_labels(names: Sequence[str], examples: int, named: bool, several: bool) -> None:
    """`InputError` where there is nothing to tell apart, or too little to learn each label from.

    `examples`: how many there are to learn from (0: none are needed); `named`: the recipe names the labels.
    """
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"'classify.labels' names '{repeated}' twice")
    if len(names) < (1 if several else 2):
        what = f"one label, {names[0]}" if names else "no label that can be read"
        raise InputError(f"the training examples have {what}: there is nothing to tell apart. {COLUMN}")
    if examples and len(names) > examples / (1 if named else 2):
        raise InputError(
            f"{len(names):,} different labels ({shown(names)}) for {examples:,} training examples are too many to learn any "
            f"of them. {COLUMN}"
        )


def label_names(example: Example, several: bool) -> list[str]:
    """The labels of an example, as text: one, or, where there may be `several`, any number.

    `InputError` for what is no label.
    """
    value = example.values.get("label")
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _listed(value, example.where, several)
    if isinstance(value, list):
        if not several:
            raise InputError(f"{example.where}: the label is a list; several labels a text: --classify.several true")
        return list(dict.fromkeys(_name(one, example.where) for one in value))
    return [] if several and value == "" else [_name(value, example.where)]


def found_labels(examples: Sequence[Example], several: bool) -> list[list[str]]:
    """The labels of each example that has some; what is no label is met where samples are made."""
    found = []
    for example in examples:
        try:
            found.append(label_names(example, several))
        except InputError:
            continue
    return found


def ordered(labels: Iterable[str]) -> list[str]:
    """Sorted, by their value where all are whole numbers."""
    names = sorted(labels)
    return sorted(names, key=int) if all(map(_is_whole, names)) else names


def shown(names: Sequence[str]) -> str:
    """Some labels, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _listed(text: str, where: str, several: bool) -> Any:
    """The list that a text is, in JSON; a label that only begins like one is the text."""
    try:
        listed = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        if several:
            raise InputError(f'{where}: the labels {text!r} are not a list in JSON, as ["one", "other"]') from None
        return text
    return listed if isinstance(listed, list) else text


def _name(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # of a column in which some are missing
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if value is None or value == "":
        raise InputError(f"{where}: the label is missing")
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: the label is {value!r}; accepted: a text, or a whole number")
    return value.strip()


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
