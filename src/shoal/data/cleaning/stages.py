"""What is done to each document, in this order.

Adding a stage is one file with a function that opens it, one line of `STAGES`, and its switch in `recipe.Clean`.
Exact and near duplicates come after these: they need all documents (`duplicates.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from shoal.core.errors import RecipeError
from shoal.core.recipe import Clean
from shoal.data.cleaning.c4 import open_c4
from shoal.data.cleaning.contamination import Index, open_decontamination
from shoal.data.cleaning.draft import Stage
from shoal.data.cleaning.fineweb import open_fineweb
from shoal.data.cleaning.gopher import open_gopher
from shoal.data.cleaning.language import open_language
from shoal.data.cleaning.personal import open_mask
from shoal.data.cleaning.repair import refuse_empty, repair
from shoal.data.cleaning.repetition import open_repetition
from shoal.data.cleaning.thresholds import LimitsByLanguage, resolve_thresholds

PRESETS: dict[str, tuple[str, ...]] = {
    "off": (),
    "text": ("repair", "exact", "near"),
    "web": ("repair", "gopher", "repetition", "c4", "fineweb", "exact", "near"),
}
"""Which switches a preset turns on where the recipe says nothing."""

SWITCHES = ("repair", "gopher", "repetition", "c4", "fineweb", "exact", "near")


@dataclass(frozen=True)
class Entry:
    """One line of the table. `pieces`: also done to what follows the judged beginning of an enormous document."""

    name: str
    wanted: Callable[[Clean], object]
    open: Callable[[Clean, LimitsByLanguage, Index], Stage]
    pieces: bool = False


STAGES = (
    Entry("repair", lambda clean: clean.repair, lambda *_: repair, pieces=True),
    Entry("empty", lambda _: True, lambda *_: refuse_empty),
    Entry("language", lambda clean: clean.languages or _judges(clean),
          lambda clean, *_: open_language(clean.languages, clean.language_confidence)),
    Entry("gopher", lambda clean: clean.gopher, lambda _, limits, __: open_gopher(limits)),
    Entry("repetition", lambda clean: clean.repetition, lambda _, limits, __: open_repetition(limits)),
    Entry("c4", lambda clean: clean.c4, lambda clean, limits, _: open_c4(limits, clean.c4_terminal)),
    Entry("fineweb", lambda clean: clean.fineweb, lambda _, limits, __: open_fineweb(limits)),
    Entry("mask", lambda clean: clean.mask, lambda clean, *_: open_mask(clean.mask), pieces=True),
    Entry("decontaminate", lambda clean: clean.decontaminate, lambda _, __, index: open_decontamination(index), pieces=True),
)  # fmt: skip


def resolve(clean: Clean) -> Clean:
    """The section with every switch as the preset has it where it is not set."""
    on = PRESETS[clean.preset]
    switches = {name: name in on for name in SWITCHES if getattr(clean, name) is None}
    return cast(Clean, replace(cast(Any, clean), **switches))


def is_on(clean: Clean) -> bool:
    """Whether anything is to be cleaned."""
    clean = resolve(clean)
    on = any(getattr(clean, name) for name in SWITCHES) or bool(clean.languages or clean.mask or clean.decontaminate)
    if not on and (clean.thresholds or clean.c4_terminal):
        named = "thresholds" if clean.thresholds else "c4_terminal"
        raise RecipeError(
            f"'data.clean.{named}' is for the rules gopher, repetition, c4 and fineweb, and none of them is on: set one, or "
            "data.clean.preset web"
        )
    return on


def open_stages(clean: Clean, index: Index) -> Iterator[tuple[Entry, Stage]]:
    """The wanted stages of a resolved section; raises `RecipeError` for what they do not know."""
    limits = resolve_thresholds(clean.thresholds)
    for entry in STAGES:
        if entry.wanted(clean):
            yield entry, entry.open(clean, limits, index)


def names(clean: Clean) -> list[str]:
    """Names of all wanted stages of a resolved section, in order."""
    ends = [name for name in ("exact", "near") if getattr(clean, name)]
    return [*(entry.name for entry in STAGES if entry.wanted(clean)), *ends]


def _judges(clean: Clean) -> bool:
    return bool(clean.gopher or clean.repetition or clean.c4 or clean.fineweb)
