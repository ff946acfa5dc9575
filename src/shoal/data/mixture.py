"""Several corpora in one run, in shares that may change on the way.

Which corpus a position reads is a pure function of the seed and the weights. Weights are reduced to whole numbers, 0.7 and
0.3 to 7 and 3, and every ten positions, a *period*, read seven and three. Within it corpora alternate so that at every
position each has been read within 1 of its share: each reading has a first position, before which it would come too early,
and a last one (the windows of Baruah et al. 1996), and who is due first goes first, which meets them all. Several such
orders are drawn, which begin at different places, and a hash of the period's number says which one it takes: else, with two
ranks that read every other position, one might never see a corpus.

So the state is the position alone: where a position's period begins, how much of each corpus came before is a product. A
stage of the run, with weights of its own, begins where the period before it ends.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from shoal.core.errors import RecipeError
from shoal.core.seeds import derive_seed
from shoal.data.partition import Positions, mix

LONGEST_PERIOD = 1000

ORDERS, ROTATIONS = 64, 16
"""Orders of a period among which chance chooses: how many, and how many of them differ only in where they begin."""

Whole = Annotated[int, Field(ge=0, lt=1 << 60)]


@dataclass(frozen=True)
class Stage:
    """From position `start` on, every `sum(weights)` positions read `weights[c]` samples of corpus c."""

    start: Whole
    weights: tuple[Whole, ...]

    def __post_init__(self) -> None:
        if not sum(self.weights):
            raise ValueError("all weights of a stage are 0")

    @property
    def period(self) -> int:
        """Positions after which all shares are exact."""
        return sum(self.weights)


class Picks(NamedTuple):
    """Of each position, the corpus that it reads, and how many positions before have read that one."""

    corpora: Positions
    before: Positions


@dataclass(frozen=True)
class Mixture:
    """Corpora of `samples` each, and the stages of their weights; raises `ValueError` when these don't fit together."""

    names: tuple[str, ...]
    samples: tuple[Annotated[int, Field(ge=1)], ...]
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.samples) or any(len(stage.weights) != len(self.samples) for stage in self.stages):
            raise ValueError(f"{len(self.samples)} corpora, and other numbers of names or weights")
        starts = [stage.start for stage in self.stages]
        if starts[:1] != [0] or any(late <= early for early, late in pairwise(starts)):
            raise ValueError(f"stages begin at positions {starts}")
        for stage, following in pairwise(self.stages):
            if (following.start - stage.start) % stage.period:
                raise ValueError(f"the stage at position {following.start} begins inside a period of the one before")

    @classmethod
    def of(cls, names: tuple[str, ...], samples: tuple[int, ...], stages: list[tuple[int, tuple[int, ...]]]) -> "Mixture":
        """Stages asked for at any positions, each moved to the end of the period that it falls into."""
        placed: list[Stage] = []
        for position, weights in stages:
            start = _end_of_period(placed[-1], position) if placed else 0
            while placed and placed[-1].start >= start:
                placed.pop()  # a stage that would be over before it began
            if not placed or placed[-1].weights != weights:
                placed.append(Stage(start, weights))
        return cls(names, samples, tuple(placed))

    def going_on(self, new: "Mixture", position: int) -> "Mixture":
        """This one up to `position`, and from the end of its period there on, the stages of another."""
        past = [(stage.start, stage.weights) for stage in self.stages if stage.start < max(position, 1)]
        now = [(position, new.stages[_stage_numbers(new.stages, np.array([position]))[0]].weights)]
        later = [(stage.start, stage.weights) for stage in new.stages if stage.start > position]
        return Mixture.of(self.names, self.samples, past + now + later)

    def picks(self, positions: Positions, seed: int) -> Picks:
        """Which corpus each position reads, and how many before it did."""
        numbers = _stage_numbers(self.stages, positions)
        picks = Picks(np.empty_like(positions), np.empty_like(positions))
        for number in np.unique(numbers):
            chosen, stage = numbers == number, self.stages[number]
            periods, places = np.divmod(positions[chosen] - stage.start, stage.period)
            corpora, counts = _orders(stage.weights, seed)
            key = np.uint64(derive_seed(seed, "periods", int(number)))
            drawn = mix(periods.astype(np.uint64) ^ key) % np.uint64(len(corpora))
            here = corpora[drawn, places]
            picks.corpora[chosen] = here
            before = self._before(int(number))[here] + periods * np.array(stage.weights)[here]
            picks.before[chosen] = before + counts[drawn, places]
        return picks

    def read_before(self, end: int, seed: int) -> Positions:
        """How many samples of each corpus the positions before `end` read."""
        number = int(_stage_numbers(self.stages, np.array([end]))[0])
        stage = self.stages[number]
        periods, place = divmod(end - stage.start, stage.period)
        begun = np.arange(end - place, end, dtype=np.int64)
        here = np.bincount(self.picks(begun, seed).corpora, minlength=len(self.samples))
        return self._before(number) + periods * np.array(stage.weights, dtype=np.int64) + here

    def _before(self, number: int) -> Positions:
        """Samples of each corpus that the stages before have read."""
        total = np.zeros(len(self.samples), dtype=np.int64)
        for stage, following in pairwise(self.stages[: number + 1]):
            total += (following.start - stage.start) // stage.period * np.array(stage.weights, dtype=np.int64)
        return total

    def span(self, corpus: int, first: int, last: int, end: int) -> tuple[int, int]:
        """Positions below `end`, in whole periods, in which the corpus's readings from number `first` up to `last` lie."""
        edges = [*(stage.start for stage in self.stages), end]
        low, high = end, 0
        for number, stage in enumerate(self.stages):
            weight, before = stage.weights[corpus], int(self._before(number)[corpus])
            begin, stop = edges[number], min(edges[number + 1], end)
            if not weight or begin >= stop:
                continue
            start = begin + max(0, first - before) // weight * stage.period
            finish = min(stop, begin + -(-max(0, last - before) // weight) * stage.period)
            if start < finish:
                low, high = min(low, start), max(high, finish)
        return (low, high) if low < high else (end, end)


def whole_weights(weights: list[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the same ratio; `RecipeError` when these are large, or there are none."""
    exact = [Fraction(str(weight)) for weight in weights] if all(map(math.isfinite, weights)) else [Fraction(-1)]
    if min(exact) < 0 or not sum(exact):
        raise RecipeError(f"'data.weights' has {weights}: weights are numbers from 0, and one is above it")
    common = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor > LONGEST_PERIOD:
        raise RecipeError(
            f"'data.weights' has {weights}, a ratio finer than thousandths: give shares of at most three decimals "
            "that add up to 1"
        )
    return tuple(weight // divisor for weight in whole)


def weights_by_size(samples: tuple[int, ...]) -> tuple[int, ...]:
    """Weights in proportion to the corpora's sizes, in thousandths, but never 0."""
    shares = [max(1, round(size * (LONGEST_PERIOD - len(samples)) / sum(samples))) for size in samples]
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)


def _stage_numbers(stages: tuple[Stage, ...], positions: Positions) -> Positions:
    return np.searchsorted([stage.start for stage in stages], positions, side="right") - 1


def _end_of_period(stage: Stage, position: int) -> int:
    return stage.start + -(-max(0, position - stage.start) // stage.period) * stage.period


@lru_cache(maxsize=32)
def _orders(weights: tuple[int, ...], seed: int) -> tuple[Positions, Positions]:
    """(corpus at each place, how many places before read the same), each [orders, period]."""
    random = np.random.default_rng(derive_seed(seed, "mixture"))
    drawn = []
    for _ in range(ORDERS // ROTATIONS):
        order = np.array(_order(weights, random))
        order = order[::-1] if random.integers(2) else order  # read from its end it is as even
        starts = np.resize(random.permutation(_possible_starts(order, weights)), ROTATIONS)
        drawn += [np.roll(order, -start) for start in starts]
    corpora = np.array(drawn)
    counts = np.empty_like(corpora)
    for corpus in range(len(weights)):
        here = corpora == corpus
        counts[here] = (np.cumsum(here, axis=1) - 1)[here]
    return corpora, counts


def _order(weights: tuple[int, ...], random: np.random.Generator) -> list[int]:
    """A period's corpora, by earliest deadline; of those due together, the one that is furthest behind.

    Corpus c's reading number n (from 0) may come at place p when n · period < weight · (p + 1), and must when
    (n + 1) · period ≤ weight · (p + 1).
    """
    period, done, order = sum(weights), [0] * len(weights), []
    lots = random.random(len(weights)).tolist()
    for place in range(1, period + 1):
        ready = (c for c, weight in enumerate(weights) if done[c] * period < weight * place and done[c] < weight)
        chosen = min(
            ready, key=lambda c: (-(-(done[c] + 1) * period // weights[c]), done[c] * period - weights[c] * place, lots[c])
        )
        done[chosen] += 1
        order.append(chosen)
    return order


def _possible_starts(order: Positions, weights: tuple[int, ...]) -> Positions:
    """Places of an order where it may begin, go on and come round, and still be within 1 of all shares; 0 is one."""
    period = len(order)
    ahead = np.cumsum(period * np.eye(len(weights), dtype=np.int64)[order] - weights, axis=0)
    ahead = np.concatenate([np.zeros((1, len(weights)), dtype=np.int64), ahead[:-1]])  # before each place, in 1 / period
    widest = np.maximum(ahead.max(0) - ahead, ahead - ahead.min(0)).max(1)
    return np.flatnonzero(widest < period)
