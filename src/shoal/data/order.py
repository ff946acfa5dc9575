"""Which sample each position of a run reads, of one corpus or several: the plan that a ledger is held against.

A pure function of a few numbers, which stand in the ledger; so an audit needs no corpus, and resuming no replay.
"""

from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from shoal.core.seeds import derive_seed
from shoal.data.grouping import POOL, grouped_at
from shoal.data.mixture import Mixture
from shoal.data.partition import Positions, samples_at


class Readings(NamedTuple):
    """Of each position, the sample that it reads, and the epoch of the sample's corpus (from 0)."""

    epochs: Positions
    samples: Positions


class Part(NamedTuple):
    """One corpus: its samples are numbered from `first` on."""

    name: str
    first: int
    samples: int


@dataclass(frozen=True)
class Order:
    """The order of a run's samples.

    `group`: rows of neighbouring numbers that are read together, as `data.grouping` does it (0: none); `pool`: so many
    groups are sorted together. `mixture`: where samples are those of several corpora; each has its own shuffled epochs.
    """

    seed: int
    samples: int
    group: Annotated[int, Field(ge=0)] = 0
    mixture: Mixture | None = None
    pool: Annotated[int, Field(ge=1)] = POOL

    @property
    def parts(self) -> tuple[Part, ...]:
        """The corpora."""
        if self.mixture is None:
            return (Part("", 0, self.samples),)
        sizes = self.mixture.samples
        firsts = [sum(sizes[:number]) for number in range(len(sizes))]
        return tuple(map(Part, self.mixture.names, firsts, sizes))

    def at(self, positions: Positions) -> Readings:
        """What these positions read."""
        if self.mixture is None:
            if self.group:
                samples = grouped_at(positions, self.samples, self.seed, self.group, self.pool)
            else:
                samples = samples_at(positions, self.samples, self.seed)
            return Readings(positions // self.samples, samples)
        picks = self.mixture.picks(positions, self.seed)
        readings = Readings(np.empty_like(positions), np.empty_like(positions))
        for corpus, part in enumerate(self.parts):
            chosen = picks.corpora == corpus
            before = picks.before[chosen]
            readings.epochs[chosen] = before // part.samples
            readings.samples[chosen] = part.first + samples_at(
                before, part.samples, derive_seed(self.seed, "corpus", corpus)
            )
        return readings

    def epochs(self, positions: Positions) -> Positions:
        """As `at` tells them; of one corpus, without what else it computes."""
        return positions // self.samples if self.mixture is None else self.at(positions).epochs

    def read_before(self, end: int) -> list[int]:
        """How many samples of each part the positions before `end` read."""
        return [end] if self.mixture is None else self.mixture.read_before(end, self.seed).tolist()

    def span(self, part: int, epoch: int, end: int) -> tuple[int, int]:
        """Positions below `end` among which all are that read an epoch of a corpus."""
        size = self.parts[part].samples
        first, last = epoch * size, (epoch + 1) * size
        if self.mixture is None:
            return min(first, end), min(last, end)
        return self.mixture.span(part, first, last, end)

    def going_on(self, new: "Order", position: int) -> "Order":
        """This order up to `position`, and what may change of it from there on."""
        if self.mixture is None or new.mixture is None:
            return self
        return replace(self, mixture=self.mixture.going_on(new.mixture, position))
