"""The ledger: what every rank has really read, in a few numbers, so that `data.audit` can prove it afterwards.

The partition says which rank *should* read what. The ledger holds what *was* read, entered when it is handed out: per
rank, how many samples, and the sum modulo 2^64 of a hash of each (position, sample). A sum doesn't depend on the order and
can be added up over any stretch, so a session of a thousand checkpoints is one entry of some hundred bytes, where a list
would take 16 bytes a sample. It finds any accident (a chance of 2^-64 to miss one); it is no signature against forgers.

An entry is closed with every checkpoint and is part of it. So a ledger says what the *weights* have seen: steps that were
lost in a crash are not in it, and doing them anew repeats nothing.

The first readings that differ from the plan are kept by name: a sum alone could say only that something was wrong.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from shoal.core.errors import InputError
from shoal.core.files import read_json, write_text
from shoal.data.grouping import POOL
from shoal.data.mixture import Mixture
from shoal.data.order import Order
from shoal.data.partition import Positions, mix, rank_positions

STRAYS_KEPT = 8
"""How many unplanned and how many missing readings an entry names per rank; the sums hold them all."""

READINGS_HELD = 1 << 16
"""Readings that a rank keeps in memory before it adds them up: 1 MB."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Whole = Annotated[int, Field(ge=0, lt=1 << 60)]
Strategy = Literal["interleaved", "blocks"]


@dataclass(frozen=True)
class Share:
    """What one rank read: how many samples, the sum of their hashes, and what differs from the plan.

    `unplanned` holds (position, sample) that it should not have read, or not again; `missing` positions that it left out.
    A wrong sample is both.
    """

    count: Whole = 0
    digest: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    unplanned: tuple[tuple[Whole, Whole], ...] = ()
    missing: tuple[Whole, ...] = ()

    def __add__(self, other: "Share") -> "Share":
        return Share(
            self.count + other.count,
            (self.digest + other.digest) % (1 << 64),
            (self.unplanned + other.unplanned)[:STRAYS_KEPT],
            (self.missing + other.missing)[:STRAYS_KEPT],
        )


@dataclass(frozen=True)
class Entry:
    """Steps `first_step` to `last_step` of one session, positions `[first_position, end_position)`, and each rank's share.

    Raises `ValueError` when it contradicts itself, which none does that was recorded.
    """

    session: Whole
    first_step: Whole
    last_step: Whole
    first_position: Whole
    end_position: Whole
    global_batch: Annotated[int, Field(ge=1)]
    strategy: Strategy
    ranks: tuple[Share, ...]

    def __post_init__(self) -> None:
        steps = self.last_step - self.first_step + 1
        if steps < 1 or self.end_position - self.first_position != steps * self.global_batch:
            raise ValueError(
                f"steps {self.first_step}–{self.last_step} of {self.global_batch} sequences are not positions "
                f"{self.first_position}–{self.end_position - 1}"
            )
        if not 1 <= len(self.ranks) <= self.global_batch:
            raise ValueError(f"{len(self.ranks)} ranks can't share {self.global_batch} sequences a step")


@dataclass(frozen=True)
class Ledger:
    """All that a run's weights have seen, up to `position`, and what the plan follows from.

    `corpus` is the fingerprint of what is read, and how it is cut: a sample's number means nothing without it. `group`,
    `mixture` and `pool` are those of `data.order.Order`.
    """

    seed: Whole
    samples: Annotated[int, Field(ge=1)]
    context: Annotated[int, Field(ge=1)]
    corpus: str
    position: Whole = 0
    entries: tuple[Entry, ...] = ()
    group: Whole = 0
    mixture: Mixture | None = None
    pool: Annotated[int, Field(ge=1)] = POOL

    @property
    def order(self) -> Order:
        """The plan."""
        return Order(self.seed, self.samples, self.group, self.mixture, self.pool)


class Recorder:
    """One rank's pen: enters what is read, and closes an entry with all ranks."""

    def __init__(self, ledger: Ledger, global_batch: int, strategy: Strategy, rank: int = 0, world: int = 1) -> None:
        self.global_batch, self.strategy, self.rank, self.world = global_batch, strategy, rank, world
        self.go_on_from(ledger)

    def go_on_from(self, ledger: Ledger) -> None:
        """Begin the next session at the ledger's end."""
        self.ledger = ledger
        self.session = ledger.entries[-1].session + 1 if ledger.entries else 1
        self.position = self.added_up = ledger.position
        self.share = Share()
        self.stretches: list[tuple[int, int, Share]] = []  # (batch, end, share) of those whose steps were of another size
        self.held: list[tuple[Positions, Positions]] = []
        self.held_count = 0

    def begin_step(self, global_batch: int) -> None:
        """A step of so many sequences follows; an entry has steps of one size."""
        if global_batch == self.global_batch:
            return
        begun = self.stretches[-1][1] if self.stretches else self.ledger.position
        if self.position > begun:
            self.add_up()
            self.stretches.append((self.global_batch, self.position, self.share))
            self.share = Share()
        self.global_batch = global_batch

    def enter(self, positions: Positions, samples: Positions) -> None:
        """These samples were read, at these positions."""
        self.held.append((positions, samples))
        self.held_count += len(positions)

    def end_step(self) -> None:
        """All of a step's samples are entered."""
        self.position += self.global_batch
        if self.held_count >= READINGS_HELD:
            self.add_up()

    def close(self, step: int, gather: Callable[[Any], list[Any]]) -> None:
        """Close an entry at the end of `step`, or one for each size of its steps. All ranks call it.

        `gather` collects a value of each, in their order.
        """
        self.add_up()
        stretches = [*self.stretches, (self.global_batch, self.position, self.share)]
        edges = [self.ledger.position, *(end for _, end, _ in stretches)]
        counts = [(high - low) // batch for (batch, _, _), (low, high) in zip(stretches, pairwise(edges), strict=True)]
        first = step - sum(counts) + 1
        for (batch, end, share), steps in zip(stretches, counts, strict=True):
            entry = Entry(
                self.session, first, first + steps - 1, self.ledger.position, end, batch, self.strategy,
                tuple(gather(share)),
            )  # fmt: skip
            self.ledger = replace(self.ledger, position=end, entries=with_entry(self.ledger.entries, entry))
            first += steps
        self.share, self.stretches = Share(), []

    def add_up(self) -> None:
        """Make what is held part of the rank's share, and compare it with the plan."""
        none = np.empty(0, dtype=np.int64)
        positions = np.concatenate([none, *(positions for positions, _ in self.held)])
        samples = np.concatenate([none, *(samples for _, samples in self.held)])
        planned = planned_positions(
            self.added_up, self.position, self.global_batch, self.rank, self.world, self.strategy
        )  # fmt: skip
        self.share += share_of(positions, samples, planned, self.ledger.order.at(planned).samples)
        self.held, self.held_count, self.added_up = [], 0, self.position


def share_of(positions: Positions, samples: Positions, planned: Positions, planned_samples: Positions) -> Share:
    """The share of what was read, in any order, beside what should have been."""
    hashes = reading_hashes(positions, samples)
    total = Share(len(positions), int(hashes.sum()))
    if np.array_equal(positions, planned) and np.array_equal(samples, planned_samples):
        return total
    plan = reading_hashes(planned, planned_samples)
    again = np.ones(len(hashes), dtype=bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    stray = np.flatnonzero(again | ~np.isin(hashes, plan))[:STRAYS_KEPT]
    missing = planned[~np.isin(plan, hashes)][:STRAYS_KEPT]
    unplanned = zip(positions[stray].tolist(), samples[stray].tolist(), strict=True)
    return replace(total, unplanned=tuple(unplanned), missing=tuple(missing.tolist()))


def reading_hashes(positions: Positions, samples: Positions) -> NDArray[np.uint64]:
    """A hash of each (position, sample), [n]."""
    return mix(mix(positions.astype(np.uint64) + GOLDEN) ^ samples.astype(np.uint64))


def planned_positions(start: int, end: int, global_batch: int, rank: int, world: int, strategy: Strategy) -> Positions:
    """All positions that a rank reads in the steps from `start` to `end`."""
    steps = np.arange(start, end, global_batch, dtype=np.int64)
    return (steps[:, None] + rank_positions(0, global_batch, rank, world, strategy)).reshape(-1)


def with_entry(entries: tuple[Entry, ...], new: Entry) -> tuple[Entry, ...]:
    """Entries and one more, which becomes part of the last where it goes on with the same session."""
    last = entries[-1] if entries else None
    if last is None or not _goes_on(last, new):
        return (*entries, new)
    shares = tuple(before + after for before, after in zip(last.ranks, new.ranks, strict=True))
    return (*entries[:-1], replace(last, last_step=new.last_step, end_position=new.end_position, ranks=shares))


def _goes_on(last: Entry, new: Entry) -> bool:
    return _like(last, new) and (last.last_step + 1, last.end_position) == (new.first_step, new.first_position)


def _like(one: Entry, other: Entry) -> bool:
    names = ("session", "global_batch", "strategy")
    return len(one.ranks) == len(other.ranks) and all(getattr(one, name) == getattr(other, name) for name in names)


def is_earlier(before: Ledger, after: Ledger) -> bool:
    """Whether `before` may be what `after` was at an earlier checkpoint: of its entries only the last may have grown."""
    heads = [replace(ledger, position=0, entries=(), mixture=None) for ledger in (before, after)]
    if heads[0] != heads[1] or before.position >= after.position or len(before.entries) > len(after.entries):
        return False
    pairs = list(zip(before.entries, after.entries, strict=False))
    return all(one == other for one, other in pairs[:-1]) and all(
        _like(one, other) and one.first_position == other.first_position and one.end_position <= other.end_position
        for one, other in pairs[-1:]
    )


def ledger_tree(ledger: Ledger) -> dict[str, Any]:
    """The ledger as plain values, for JSON."""
    tree = asdict(ledger)
    usual = {"group": 0, "mixture": None, "pool": POOL}
    return {key: value for key, value in tree.items() if key not in usual or value != usual[key]}


def ledger_from(tree: Any, place: Path | str) -> Ledger:
    """The ledger in plain values; `InputError` that names `place` when it is none."""
    try:
        return TypeAdapter(Ledger).validate_python(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "all of it"
        raise InputError(f"{place}: damaged, this is no ledger ({key}: {fault['msg']})") from None


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Replace `path` by the ledger, a line an entry."""
    tree = ledger_tree(ledger)
    entries = ",\n    ".join(json.dumps(entry) for entry in tree.pop("entries"))
    write_text(path, f'{json.dumps(tree, indent=2)[:-2]},\n  "entries": [\n    {entries}\n  ]\n}}\n')


def read_ledger(path: Path) -> Ledger:
    """The ledger in `path`; `InputError` when it is missing or damaged."""
    return ledger_from(read_json(path), path)
