"""What an evaluation tells of each label, and which it takes for which, as tables for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

SPLITS = {"eval": "held-out", "test": "test"}
"""What splits are called, by what stands before their figures."""

WIDEST = 8
"""Labels that a confusion matrix has as columns, at most; of more, what is confused most is told."""

LONGEST = 30
"""Rows of a table, at most."""


def figure_tables(result: Mapping[str, Any], split: str = "eval") -> Iterator[Table]:
    """Tables of the figures that are of one label each, and of the confusion matrix, where a result has them."""
    each, matrix = result.get(f"{split}_labels"), result.get(f"{split}_confusion")
    if each:
        yield _of_labels(each, matrix if matrix and len(matrix) <= WIDEST else None)
    if matrix and len(matrix) > WIDEST and (confused := most_confused(list(each or ()), matrix, LONGEST // 3)):
        yield _rows(("true", "taken for", "times"), [(true, told, f"{count:,}") for true, told, count in confused])


def most_confused(labels: list[str], matrix: list[list[int]], most: int) -> list[tuple[str, str, int]]:
    """(label, what it was taken for, how often), the most frequent first."""
    confused = [
        (labels[true], labels[told], count)
        for true, row in enumerate(matrix)
        for told, count in enumerate(row)
        if count and true != told
    ]
    return sorted(confused, key=lambda one: -one[2])[:most]


def _of_labels(each: Mapping[str, Mapping[str, float]], matrix: list[list[int]] | None) -> Table:
    """A row a label: its figures, and what its examples were taken for."""
    names = list(next(iter(each.values())))
    told = [f"told {label}" for label in each] if matrix else []
    rows = []
    for number, (label, figures) in enumerate(each.items()):
        shown = [f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in figures.values()]
        rows.append((label, *shown, *(f"{count:,}" for count in (matrix[number] if matrix else []))))
    return _rows(("label", *names, *told), rows)


def _rows(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows[:LONGEST]:
        table.add_row(*map(Text, row))
    if len(rows) > LONGEST:
        table.add_row(f"… and {len(rows) - LONGEST:,} more, in result.json")
    return table
