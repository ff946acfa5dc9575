"""CoNLL files: a word a line, its columns apart by a tab or by spaces, and a blank line behind every sentence.

The word is in the first column and its tag in the last, or where `examples.columns` says, as `{tokens: 2, tags: 4}`. Lines
that begin with `-DOCSTART-`, between documents, hold no word.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError
from shoal.core.recipe import Examples
from shoal.data.examples.example import Role
from shoal.data.readers import opened_text

LINE = "line of the first token"
"""A column that CoNLL files have by themselves: each token has a line, so this says where every one stands."""

DOCUMENT = "-DOCSTART-"


def read_conll(path: Path, roles: Sequence[Role], settings: Examples) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """(where, row) of every sentence, or what is wrong with it: a line with other columns than the first."""
    names = [settings.columns.get(role, role) for role in ("tokens", "tags")]
    width = 0
    for first, sentence in _sentences(path):
        where = f"{path}:{first}"
        width = width or len(sentence[0])
        wrong = next((number for number, cells in enumerate(sentence, first) if len(cells) != width), None)
        if width < 2:
            raise InputError(f"{where}: one column; a line has a word and, apart by a space or a tab, its tag")
        if wrong is not None:
            found = len(sentence[wrong - first])
            yield where, InputError(f"{path}:{wrong}: {found} column{'s' * (found > 1)}, where others have {width}")
            continue
        chosen = [_column(settings, role, usual, width, path) for role, usual in (("tokens", 1), ("tags", width))]
        columns = {name: [cells[at] for cells in sentence] for name, at in zip(names, chosen, strict=True)}
        yield where, columns | {LINE: first}


def _sentences(path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """(number of the first line, columns of each line) of every sentence."""
    first = 1
    lines: list[list[str]] = []
    with opened_text(path, str(path)) as file:
        for number, line in enumerate(file, 1):
            cells = _cells(line)
            if cells and not cells[0].startswith(DOCUMENT):
                lines.append(cells)
                continue
            if lines:
                yield first, lines
            first, lines = number + 1, []
    if lines:
        yield first, lines


def _cells(line: str) -> list[str]:
    line = line.strip(" \t\r\n")
    return re.split(r"\t+" if "\t" in line else " +", line) if line else []


def _column(settings: Examples, role: str, usual: int, width: int, path: Path) -> int:
    """Where a line has the role, counted from 0."""
    given = settings.columns.get(role, str(usual))
    if not given.isdecimal() or not 1 <= int(given) <= width:
        raise InputError(
            f"'examples.columns' has the {role} in column '{given}', and {path} has {width} columns; accepted: 1 to {width}"
        )
    return int(given) - 1
