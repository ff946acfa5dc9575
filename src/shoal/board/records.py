"""A line of `metrics.jsonl`, as numbers by name. Files come from anywhere: what is not a record is counted, not trusted."""

import json
import math
from dataclasses import dataclass
from typing import Any

LARGEST = 2**53
"""Whole numbers from here on have no place in a chart, nor in the page's numbers."""

LONGEST_NAME = 80
"""Characters of a number's name."""

MOST_RANKS = 16
"""Ranks whose own figures are kept; the first ones."""

RANKS = "ranks/"
"""How the names of their numbers begin, and no others do: the page draws a line for each rank that it finds."""


@dataclass(frozen=True)
class Record:
    """A training step or an evaluation."""

    step: int
    is_evaluation: bool
    values: dict[str, float]
    """The finite numbers by key; those of ranks are `ranks/KEY/RANK`."""
    diverged: bool
    """Whether its loss is not a finite number."""
    told: tuple[str, ...]
    """What it says in words: which ranks are slow."""


def parse(line: bytes) -> Record | None:
    """The line's record; None where it is none."""
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number of thousands of digits, nested without end
        return None
    if not isinstance(tree, dict) or type(tree.get("step")) is not int or not 0 <= tree["step"] < LARGEST:
        return None
    is_evaluation = "loss" not in tree and any(key.startswith("eval_") for key in tree)
    values: dict[str, float] = {}
    for key, value in tree.items():
        if not key.startswith(RANKS):
            _keep(values, key, value)
    ranks = tree.get("ranks")
    for key, row in ranks.items() if isinstance(ranks, dict) else ():
        if "/" in key:
            continue
        for rank, value in enumerate(row[:MOST_RANKS] if isinstance(row, list) else ()):
            _keep(values, f"{RANKS}{key}/{rank}", value)
    loss = tree.get("eval_loss" if is_evaluation else "loss")
    told = tree.get("stragglers")
    return Record(
        tree["step"],
        is_evaluation,
        values,
        isinstance(loss, float) and not math.isfinite(loss),
        tuple(text for text in told if isinstance(text, str)) if isinstance(told, list) else (),
    )


def _keep(values: dict[str, float], key: str, value: Any) -> None:
    if type(value) is float and math.isfinite(value):
        if len(key) <= LONGEST_NAME:
            values[key] = value
    elif type(value) is int and abs(value) < LARGEST and len(key) <= LONGEST_NAME:
        values[key] = float(value)
