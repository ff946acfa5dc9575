"""The proof that a run has read every sample it should have, and none twice.

A ledger is compared with the plan, which is a pure function and computed anew: entries must tile the positions from 0 to the
run's, and each rank's count and digest must be those of the samples that the plan gives it. Then every epoch's samples are
counted one by one, those that the proven readings name. Nothing is taken from the entries' own claims but where they begin
and end, how many ranks shared them, and the differences that a rank wrote down, which count only if they explain its digest.

A sample costs about a microsecond and an epoch 2 bytes a sample, at most 64 MB at a time: larger corpora take more passes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shoal.data.ledger import Entry, Ledger, Share, reading_hashes
from shoal.data.order import Part
from shoal.data.partition import Positions, rank_positions

SAMPLES_AT_ONCE = 1 << 25
"""Samples counted in one pass over an epoch."""

POSITIONS_AT_ONCE = 1 << 18

NAMED = 5
"""How many samples of an epoch are named one by one."""


@dataclass
class Audit:
    """What an audit has found; without faults, `lost`, `repeated` and `unproven` are 0."""

    consumed: int
    lost: int = 0
    repeated: int = 0
    unproven: int = 0
    faults: list[str] = field(default_factory=list)
    sound: list[bool] = field(default_factory=list)
    """Whether each entry is as planned, in its place and in all its ranks."""


@dataclass(frozen=True)
class _Stretch:
    """Some whole steps of an entry; `inside` says which of their positions count."""

    entry: int
    positions: Positions
    samples: Positions
    inside: NDArray[np.bool_]


@dataclass(frozen=True)
class _Epoch:
    """An epoch of one corpus, `number` in the ledger's order."""

    number: int
    part: Part
    epoch: int


def audit(ledger: Ledger) -> Audit:
    """Compare a ledger with the plan and count the samples of every epoch."""
    found = Audit(sum(share.count for entry in ledger.entries for share in entry.ranks))
    found.sound = [True] * len(ledger.entries)
    _check_tiling(ledger, found)
    counted = Audit(0)
    expected = [[Share() for _ in entry.ranks] for entry in ledger.entries]
    end = max((entry.end_position for entry in ledger.entries), default=0)
    for number, part in enumerate(ledger.order.parts):
        for epoch in range(-(-ledger.order.read_before(end)[number] // part.samples)):
            for low in range(0, part.samples, SAMPLES_AT_ONCE):
                _count(ledger, _Epoch(number, part, epoch), low, counted, expected if low == 0 else None)
    for number, entry in enumerate(ledger.entries):
        for rank, (share, plan) in enumerate(zip(entry.ranks, expected[number], strict=True)):
            if share != plan:
                found.sound[number] = False
                _name_differences(ledger, entry, rank, plan, found)
    found.lost, found.repeated = counted.lost + max(0, ledger.position - end), counted.repeated
    found.faults += counted.faults  # last, as they follow from the others
    return found


def _check_tiling(ledger: Ledger, found: Audit) -> None:
    """Entries must follow each other without gap or overlap, in steps as in positions, up to the run's position."""
    position, step, before = 0, 0, "the run's begin"
    for number, entry in enumerate(ledger.entries):
        name, faults = _name(entry), len(found.faults)
        if entry.first_position > position:
            found.faults.append(
                f"positions {_span(position, entry.first_position)} are in no entry, between {before} and {name}"
            )
        elif entry.first_position < position:
            twice = _span(entry.first_position, min(position, entry.end_position))
            found.faults.append(f"positions {twice} are in two entries, {before} and {name}")
        elif entry.first_step != step + 1:
            found.faults.append(f"{name} follows step {step}")
        found.sound[number] = len(found.faults) == faults
        position, step, before = max(position, entry.end_position), entry.last_step, name
    if position < ledger.position:
        found.faults.append(f"positions {_span(position, ledger.position)} are in no entry, after {before}")
    elif position > ledger.position:
        found.faults.append(f"{before} ends at position {position}, the run at {ledger.position}")


def _count(ledger: Ledger, epoch: _Epoch, low: int, found: Audit, expected: list[list[Share]] | None) -> None:
    """Count how often each of an epoch's samples from `low` on was read, and add up what each rank should have read."""
    low += epoch.part.first
    high = min(low + SAMPLES_AT_ONCE, epoch.part.first + epoch.part.samples)
    counts = np.zeros(high - low, dtype=np.uint16)
    for stretch in _stretches(ledger, epoch):
        here = stretch.samples[stretch.inside & (stretch.samples >= low) & (stretch.samples < high)]
        counts[here - low] += 1  # a sample is there once in a stretch: the order of an epoch is a permutation
        if expected is not None:
            _add_expected(ledger.entries[stretch.entry], stretch, expected[stretch.entry])
    for position, sample, change in _written_differences(ledger):
        if low <= sample < high and ledger.order.read_before(position)[epoch.number] // epoch.part.samples == epoch.epoch:
            counts[sample - low] = max(0, int(counts[sample - low]) + change)
    due = _due(ledger, epoch, low, high)
    lost, repeated = np.flatnonzero(due & (counts == 0)), np.flatnonzero(counts > 1)
    found.lost += len(lost)
    found.repeated += int((counts[repeated] - 1).sum())
    of = f"{epoch.part.name}, " if epoch.part.name else ""
    for samples, what in ((lost, "lost"), (repeated, "repeated")):
        if len(samples):
            found.faults.append(f"{of}epoch {epoch.epoch + 1}: {_samples(samples + low)} {what}")


def _stretches(ledger: Ledger, epoch: _Epoch) -> Iterator[_Stretch]:
    """What the plan gives to the entries in an epoch, a bounded piece at a time."""
    order = ledger.order
    first, end = order.span(epoch.number, epoch.epoch, max(entry.end_position for entry in ledger.entries))
    for number, entry in enumerate(ledger.entries):
        low, high = max(first, entry.first_position), min(end, entry.end_position)
        batch, begin = entry.global_batch, entry.first_position
        steps = max(1, POSITIONS_AT_ONCE // batch)
        for step in range((low - begin) // batch, -(-(high - begin) // batch), steps) if low < high else ():
            last = min(step + steps, -(-(high - begin) // batch))
            positions = np.arange(begin + step * batch, begin + last * batch, dtype=np.int64)
            yield _Stretch(number, positions, *_inside(ledger, epoch, positions))


def _inside(ledger: Ledger, epoch: _Epoch, positions: Positions) -> tuple[Positions, NDArray[np.bool_]]:
    """(what the plan reads at these positions, which of it is of the epoch)."""
    epochs, samples = ledger.order.at(positions)
    first = epoch.part.first
    return samples, (epochs == epoch.epoch) & (samples >= first) & (samples < first + epoch.part.samples)


def _add_expected(entry: Entry, stretch: _Stretch, expected: list[Share]) -> None:
    steps = (-1, entry.global_batch)
    hashes = np.where(stretch.inside, reading_hashes(stretch.positions, stretch.samples), np.uint64(0)).reshape(steps)
    inside, world = stretch.inside.reshape(steps), len(expected)
    for rank in range(world):
        mine = rank_positions(0, entry.global_batch, rank, world, entry.strategy)
        expected[rank] += Share(int(inside[:, mine].sum()), int(hashes[:, mine].sum()))


def _due(ledger: Ledger, epoch: _Epoch, low: int, high: int) -> NDArray[np.bool_]:
    """Which of an epoch's samples from `low` to `high` the run must have read by the end of its last entry."""
    end = max(entry.end_position for entry in ledger.entries)
    whole = ledger.order.read_before(end)[epoch.number] >= (epoch.epoch + 1) * epoch.part.samples
    due = np.full(high - low, whole)
    first, end = ledger.order.span(epoch.number, epoch.epoch, end)
    for start in range(first, end, POSITIONS_AT_ONCE) if not whole else ():
        positions = np.arange(start, min(start + POSITIONS_AT_ONCE, end), dtype=np.int64)
        samples, inside = _inside(ledger, epoch, positions)
        due[samples[inside & (samples >= low) & (samples < high)] - low] = True
    return due


def _written_differences(ledger: Ledger) -> Iterator[tuple[int, int, int]]:
    """(position, sample, change of its count) of all that the ranks themselves wrote down as unlike the plan."""
    for share in (share for entry in ledger.entries for share in entry.ranks):
        yield from ((position, sample, 1) for position, sample in share.unplanned)
        yield from ((position, _planned_sample(ledger, position), -1) for position in share.missing)


def _planned_sample(ledger: Ledger, position: int) -> int:
    return int(ledger.order.at(np.array([position], dtype=np.int64)).samples[0])


def _name_differences(ledger: Ledger, entry: Entry, rank: int, plan: Share, found: Audit) -> None:
    """Say what a rank read instead of its share, as far as it is known."""
    share, who = entry.ranks[rank], f"session {entry.session}, rank {rank}"
    unplanned = dict(share.unplanned)
    for position, sample in share.unplanned:
        instead = f"instead of {_planned_sample(ledger, position)}" if position in share.missing else "beside its own share"
        found.faults.append(f"{who}, step {_step(entry, position)}: read sample {sample} {instead} (position {position})")
    for position in share.missing:
        if position not in unplanned:
            sample = _planned_sample(ledger, position)
            found.faults.append(f"{who}, step {_step(entry, position)}: did not read sample {sample} (position {position})")
    digest, count = plan.digest, plan.count + len(share.unplanned) - len(share.missing)
    for sign, pairs in (
        (1, share.unplanned),
        (-1, tuple((position, _planned_sample(ledger, position)) for position in share.missing)),
    ):
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        digest += sign * int(reading_hashes(table[:, 0], table[:, 1]).sum())
    if (count, digest % (1 << 64)) == (share.count, share.digest):
        return
    found.unproven += share.count
    read = "other samples than its own" if share.count == plan.count else f"{share.count} samples instead of {plan.count}"
    more = ", more than is named above" if share.unplanned or share.missing else ""
    found.faults.append(f"{who}, steps {entry.first_step}–{entry.last_step}: read {read}{more}")


def _step(entry: Entry, position: int) -> int:
    return entry.first_step + (position - entry.first_position) // entry.global_batch


def _name(entry: Entry) -> str:
    return f"session {entry.session} (steps {entry.first_step}–{entry.last_step})"


def _span(start: int, end: int) -> str:
    return f"{start}–{end - 1}"


def _samples(numbers: NDArray[np.int64]) -> str:
    named = ", ".join(map(str, numbers[:NAMED].tolist())) + (", …" if len(numbers) > NAMED else "")
    return f"{len(numbers):,} sample{'s' if len(numbers) > 1 else ''} ({named})"
