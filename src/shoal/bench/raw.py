"""The raw results of a bench: one file, extended row by row, so that a bench that is killed loses only what it was at."""

import statistics
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError
from shoal.core.files import read_json, write_json

Row = dict[str, Any]


class Raw:
    """Rows of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = read_json(path) if path.exists() else {"rows": []}
        if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
            raise InputError(f"{path}: not a file of results; name another with --results, and leave this one as it is")
        self.rows: list[Row] = found["rows"]

    def add(self, row: Row) -> None:
        """Keep a row, on disk when this returns."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"rows": self.rows})

    def find(self, key: Row) -> Row | None:
        """The row with all of these values."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def ideal(self, row: Row) -> float | None:
        """Seconds of an ideal step about when a row was measured: the mean of the last before it and the next after.

        Both of the row's own sitting, as a machine differs from one day to the next. For a row that is not there yet, the
        last.
        """
        place = {key: row[key] for key in ("kind", "hosts", "megabits")} | {"method": "ideal"}
        ideals = [index for index, other in enumerate(self.rows) if place.items() <= other.items()]
        at = next((index for index, other in enumerate(self.rows) if other is row), None)
        if at is None:
            near = ideals[-1:]
        else:
            ideals = [index for index in ideals if self.rows[index].get("began") == row.get("began")]
            near = [index for index in ideals if index < at][-1:] + [index for index in ideals if index > at][:1]
        return statistics.mean(self.rows[index]["step_seconds"] for index in near) if near else None

    def share(self, row: Row) -> float | None:
        """A row's speed as a share of the ideal: of its own loop where it has one."""
        alone = row.get("ideal_step_seconds") or self.ideal(row)
        return alone / row["step_seconds"] if alone and row["method"] != "ideal" else None
