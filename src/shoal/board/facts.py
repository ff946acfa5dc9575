"""What stands beside a run's metrics: recipe, result, texts, and how to go on. Read when it has changed, and never trusted.

A file that is missing is nothing special; one that can't be read is a fault that the page tells.
"""

import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import yaml

from shoal.core.recipe import Objective
from shoal.core.run_directory import RunDirectory

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

LARGEST = 4 << 20
"""Bytes of a file that is read whole."""

MOST_LEAVES = 1000
"""Keys of a recipe, and numbers of a result, that are shown."""

MOST_TEXTS = 50
"""Predictions that are shown, the first ones."""

LONGEST_TEXT = 4000
"""Characters of a text that are shown."""

Kept = TypeVar("Kept")


@dataclass
class Remembered(Generic[Kept]):
    """What was read from a file, until the file changes."""

    path: Path
    read: Callable[[Path], Kept]
    empty: Kept
    fault: str = ""
    _value: Kept | None = None
    _known: tuple[int, int, int] | None = None

    def get(self) -> Kept:
        """The file's content; `empty` where there is none or it can't be read, which `fault` then says."""
        try:
            state = self.path.stat()
            known = (state.st_ino, state.st_size, state.st_mtime_ns)
            if known != self._known:
                self._known, self._value, self.fault = known, None, ""
                if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for its writer
                    raise ValueError("it is no plain file")
                self._value = self.read(self.path)
        except FileNotFoundError:
            self._known, self._value, self.fault = None, None, ""
        except (OSError, ValueError, RecursionError, TypeError, yaml.YAMLError) as error:
            self.fault = f"{self.path.name} can't be read: {' '.join(str(error).split())[:200]}"
        return self.empty if self._value is None else self._value


@dataclass
class Facts:
    """What a run's folder tells beside its metrics."""

    folder: RunDirectory
    recipe: Remembered[dict[str, Any]] = field(init=False)
    result: Remembered[dict[str, Any]] = field(init=False)
    ledger: Remembered[dict[str, Any]] = field(init=False)
    latest: Remembered[str] = field(init=False)
    predictions: Remembered[list[dict[str, Any]]] = field(init=False)

    def __post_init__(self) -> None:
        self.recipe = Remembered(self.folder.recipe, _read_recipe, {})
        self.result = Remembered(self.folder.result, _read_tree, {})
        self.ledger = Remembered(self.folder.ledger, _read_tree, {})
        self.latest = Remembered(self.folder.checkpoints / "latest", _read_text, "")
        self.predictions = Remembered(self.folder.predictions, _read_predictions, [])

    @property
    def faults(self) -> list[str]:
        """What could not be read."""
        return [file.fault for file in (self.recipe, self.result, self.ledger, self.predictions) if file.fault]

    @property
    def saved_step(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        number = self.latest.get().strip().removeprefix("step-")
        return int(number) if number.isascii() and number.isdigit() and len(number) < 16 else None

    @property
    def ranks(self) -> int:
        """How many ranks its last session had, as far as is known."""
        entries = self.ledger.get().get("entries")
        last = entries[-1] if isinstance(entries, list) and entries else {}
        ranks = last.get("ranks") if isinstance(last, dict) else None
        return len(ranks) if isinstance(ranks, list) and ranks else 1

    @property
    def steps_of_epochs(self) -> float:
        """The steps that its epochs are; 0 where it has none, or is too young to tell."""
        epochs, batch = (number(self.recipe.get().get(f"train.{key}")) for key in ("epochs", "global_batch"))
        return epochs * number(self.ledger.get().get("samples")) / batch if batch else 0.0

    def resume(self) -> str:
        """The command to go on with; empty where nothing was saved."""
        if self.saved_step is None or not self.folder.recipe.exists():
            return ""
        pretrained = self.recipe.get().get("task") in get_args(Objective)
        return self.folder.again("pretrain" if pretrained else "finetune", self.ranks)

    def tree(self) -> dict[str, Any]:
        """All that a run's own panel shows, as JSON."""
        result = self.result.get()
        numbers = {key: value for key, value in result.items() if key not in ("samples", "evaluations")}
        return {
            "recipe": self.recipe.get(),
            "result": dict(islice(_leaves(numbers), MOST_LEAVES)),
            "samples": [_shortened(sample) for sample in _dicts(result.get("samples"))[:MOST_TEXTS]],
            "predictions": self.predictions.get(),
            "told": [str(text)[:LONGEST_TEXT] for text in [*_listed(result.get("reformed")), *self.faults]],
            "resume": self.resume(),
            "report": self.folder.report.exists(),
        }


def number(value: Any) -> float:
    """A number that is one and not negative, or 0."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18 else 0.0


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 20} MB")
    return content.decode("utf-8")


def _read_tree(path: Path) -> dict[str, Any]:
    tree = json.loads(_read_text(path))
    if not isinstance(tree, dict):
        raise ValueError("it holds no JSON object")
    return tree


def _read_recipe(path: Path) -> dict[str, Any]:
    tree = yaml.load(_read_text(path), Loader=Loader)
    if not isinstance(tree, dict):
        raise ValueError("a recipe is a mapping of sections")
    return dict(islice(_leaves(tree), MOST_LEAVES))


def _read_predictions(path: Path) -> list[dict[str, Any]]:
    """The first lines; one that is cut off or no JSON ends them."""
    found: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for _ in range(MOST_TEXTS):
            line = file.readline(1 << 16)
            if not line.endswith(b"\n"):
                break
            example = json.loads(line)
            if isinstance(example, dict):
                found.append(_shortened(example))
    return found


def _leaves(tree: dict[str, Any], before: str = "", depth: int = 6) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each value; what is deeper, or a list, is one text."""
    for key, value in tree.items():
        name = f"{before}{key}"[:200]
        if isinstance(value, dict) and value and depth:
            yield from _leaves(value, f"{name}.", depth - 1)
        else:
            yield name, _plain(value)


def _plain(value: Any) -> Any:
    """As JSON has it; a text is shortened."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if abs(value) < 1e300 else str(value)[:40]  # neither infinite nor NaN: JSON has no such numbers
    return (value if isinstance(value, str) else _dumped(value))[:LONGEST_TEXT]


def _dumped(value: Any) -> str:
    # through the encoder's pieces: a recipe may refer to itself a million times in a line
    return "".join(islice(json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value), LONGEST_TEXT))


def _shortened(example: dict[str, Any]) -> dict[str, Any]:
    return dict(islice(_leaves(example), 40))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in _listed(value) if isinstance(one, dict)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
