"""One labelled example, and the columns that a task wants of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.core.errors import InputError
from shoal.data.readers import is_encodable


@dataclass(frozen=True)
class Example:
    """What an example holds, by role (`text`, `label`, `tokens`, …), and where it stands, `FILE:LINE`."""

    values: Mapping[str, Any]
    where: str

    def text(self, role: str) -> str:
        """The text of a role; `InputError` where it is something else, or what no text can be."""
        value = self.values.get(role)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: the {role} is {_kind(value)}, not text")
        if not is_encodable(value):
            raise InputError(f"{self.where}: the {role} holds half a surrogate pair (\\ud800 to \\udfff), which no text has")
        return value

    def texts(self, role: str) -> list[str]:
        """The texts of a role that is a list; `InputError` where it is something else."""
        value = self.values.get(role)
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(part, str) for part in value):
            raise InputError(f"{self.where}: the {role} are {_kind(value)}, not a list of texts")
        if not all(map(is_encodable, value)):
            raise InputError(f"{self.where}: the {role} hold half a surrogate pair (\\ud800 to \\udfff), which no text has")
        return list(value)


@dataclass(frozen=True)
class Role:
    """A column that a task wants: `names` under which files usually have it, best first; `needed`: it can't do without.

    `instead`: a role before it, which does as well.
    """

    name: str
    names: tuple[str, ...]
    needed: bool = True
    instead: str = ""


def _kind(value: Any) -> str:
    return "missing" if value is None else type(value).__name__


def choose_columns(columns: Sequence[str], roles: Sequence[Role], given: Mapping[str, str], where: str) -> dict[str, str]:
    """The column of each role; `InputError` that names the columns there are where one is not found."""
    if unknown := [role for role in given if role not in {role.name for role in roles}]:
        raise InputError(
            f"'examples.columns' names '{unknown[0]}', which the task has no use for; accepted: "
            f"{', '.join(role.name for role in roles)}"
        )
    chosen: dict[str, str] = {}
    for role in roles:
        taken = {*chosen.values(), *given.values()}  # a column is one thing
        usual = {column.lower(): column for column in reversed(columns) if column not in taken}
        name = given.get(role.name) or next((usual[name] for name in role.names if name in usual), None)
        if name is None and (not role.needed or role.instead in chosen):
            continue
        if name is None or name not in columns:
            missing = f"no column '{name}'" if name else f"no column for the {role.name} ({', '.join(role.names)})"
            raise InputError(
                f"{where}: {missing}; there are: {', '.join(map(str, columns))}. Name it: "
                f"--examples.columns '{{{role.name}: COLUMN}}'"
            )
        chosen[role.name] = name
    return chosen
