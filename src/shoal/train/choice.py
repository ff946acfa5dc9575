"""Which way ranks should meet, by the cost model: from what the link carries and how long a step computes.

Plain synchronous training where the link can hide it; else the mildest codec every step that can be hidden; else local
updates in parts that travel behind the computing, with the fewest steps between meetings that lose 5% at most: in int4, or
in two bits where int4 would need many. Top-k is not among them: at one value in 64 it trained worse than anything else here
(docs/communication.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.core import recipe as schema
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, recipe_tree
from shoal.models.transformer import Transformer
from shoal.parallel.codecs import CODECS
from shoal.parallel.coded_sum import MESSAGE_BYTES
from shoal.parallel.cost import Compute, Traffic, step_seconds
from shoal.parallel.link import Link
from shoal.train.strategies import most_rows

HIDDEN = 0.97
"""Share of ideal speed from which on communication counts as hidden."""

ENOUGH = 0.95
"""Share of ideal speed that local updates must reach."""

WORTH = 1.03
"""How many times as fast as a milder one a codec must be, or local updates: the cost model is not surer than this."""

MILDEST_FIRST = ("bf16", "int8", "int4")

LOCAL_CODECS = ("int4", "two_bit")
"""Of local updates: the second where the first would need more than `FEW_STEPS` between meetings, and it needs fewer. At
equal bytes, half the steps with half the bits lose less (docs/communication.md)."""

FEWER = 0.75
"""Share of the first codec's steps that the second may take at most to be worth its error."""

CLOSE = 4
"""Steps between meetings up to which a longer outer step than the mean of the ranks' pays (docs/communication.md)."""

LONGER = {2: 1.2, 4: 1.6}
"""The outer step then, of so many ranks and more: what each has learnt of a part of the batch cancels in part, so their mean
falls short."""

WITH_MOMENTUM: dict[str, Any] = {"outer": "nesterov", "learning_rate": 0.9, "momentum": 0.3}
"""The outer step of ranks that meet rarely, in the second codec."""

MEETINGS = (4, *range(8, 257, 2))
"""Steps between meetings that are tried: every 2 costs no less loss than every 4."""

FEW_STEPS = 16
"""Up to so many steps between meetings cost little loss; more are taken only where the link must have them."""

FRAGMENTS = 8
"""Parts that the model is sent in, at most, each with two steps or more to travel: the smaller, the sooner it is there."""

ENCODED = {"bf16": 7e9, "int8": 4.5e9, "int4": 3e9, "two_bit": 3e9}
"""Bytes of fp32 that a core encodes a second, feedback included, as bench/codecs.py measures it."""

DECODED = 14e9
"""Bytes of fp32 that a core decodes a second."""

CARRIED = 1e9
"""Encoded bytes that a core sends, and takes in, a second: what int8 and bf16 at every step cost where the link is no limit,
beyond encoding (docs/communication.md)."""

Costs = Mapping[str, float]
"""What sums at every step were measured to cost: seconds of a core for each number, by codec."""

UNKNOWN: Costs = {}

PASSES = 16
"""How often a local update reads or writes each weight, from leaving to landing."""

MEMORY = 8e9
"""Bytes that a core reads or writes a second."""


@dataclass(frozen=True)
class Last:
    """Share of the parameters whose gradients come last, with no backward left to hide them: of plain and encoded ones."""

    plain: float = 0.0
    coded: float = 0.0

    @classmethod
    def of_model(cls, recipe: Recipe, model: Transformer, ranks: int) -> "Last":
        """The token embedding; encoded, of a tied one the rows that a step reads."""
        learnt = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
        whole = learnt.get("embedding.weight", 0) / sum(learnt.values())
        rows = most_rows(recipe, model, ranks)
        # each goes to all others whole, where other gradients go to one, and come back summed
        return cls(whole, rows * model.config.dim * ranks / 2 / sum(learnt.values()) if rows else whole)

    def of(self, kind: str) -> float:
        """With a codec, or `none`."""
        return self.plain if kind == "none" else self.coded


NOTHING_LAST = Last()


@dataclass(frozen=True)
class Choice:
    """A strategy, which share of ideal speed it is foretold to reach, and why in two lines."""

    sync: str
    codec: str
    share: float
    reasons: tuple[str, str]
    every: int = 0
    """Steps between meetings, of local updates."""
    overlap: int = 0
    """Steps that a part of the model may take to travel, then."""
    fragments: int = 0
    """How many parts there are, then."""
    outer: dict[str, Any] = field(default_factory=dict)
    """Settings of the outer step, where it is not the recipe's, then."""

    @classmethod
    def of_state(cls, kept: dict[str, Any]) -> "Choice":
        """From a checkpoint; those of before there were `fragments` had four, or two where ranks met often."""
        before = {"fragments": (4 if kept["every"] >= 8 else 2) if kept["sync"] == "local" else 0}
        return cls(**{**before, **kept, "reasons": tuple(kept["reasons"])})

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with it."""
        tree = recipe_tree(recipe)
        parallel = tree["parallel"]
        parallel["sync"], parallel["codec"]["kind"] = self.sync, self.codec
        if self.sync == "local":
            travel = {"every": self.every, "fragments": self.fragments, "overlap": self.overlap}
            parallel["local"] |= travel | self.outer
        return build_recipe(tree)


def parts(every: int) -> int:
    """How many the model is sent in by ranks that meet so often."""
    return max(2, min(FRAGMENTS, every // 2))


def choose(
    link: Link,
    compute: Compute,
    parameters: int,
    ranks: int,
    settings: schema.Parallel,
    last: Last = NOTHING_LAST,
    equal_shares: bool = True,
    optimizer: str = "adamw",
    costs: Costs = UNKNOWN,
) -> Choice:
    """The mildest strategy that the link hides, with the recipe's buckets and codec settings.

    `equal_shares`: whether ranks read equally much, as they must where they step apart. `optimizer`: the inner one's kind.
    """
    plain = _share(link, compute, every_step(parameters, ranks, "none", settings, last), ranks)
    measured = (
        f"link: {_bits(link.bandwidth)}, {link.latency * 1e3:.3g} ms; computing {compute.total:.3g} s a step; "
        f"plain fp32 would reach {plain:.0%} of ideal"
    )
    if plain >= HIDDEN:
        return Choice("every", "none", plain, (measured, "auto: plain, as the link hides it"))
    coded = {kind: every_step(parameters, ranks, kind, settings, last, costs) for kind in MILDEST_FIRST}
    shares = {kind: _share(link, compute, traffic, ranks) for kind, traffic in coded.items()}
    for kind, share in shares.items():
        if share >= HIDDEN and share > WORTH * plain:
            why = f"auto: {kind} every step, the mildest codec that the link hides ({share:.0%} of ideal)"
            return Choice("every", kind, share, (measured, why))
    ways = (_fewest_steps(kind, link, compute, parameters, ranks, settings) for kind in LOCAL_CODECS)
    apart = _apart(*ways)
    of_all = {"none": plain, **shares}
    kind, best = next((kind, share) for kind, share in of_all.items() if WORTH * share >= max(of_all.values()))
    if not equal_shares or apart.share <= WORTH * max(of_all.values()):
        reason = "nothing is much faster" if equal_shares else "ranks with unequal shares of train.global_batch can't part"
        why = f"auto: {kind if kind != 'none' else 'plain'} every step ({best:.0%} of ideal): {reason}"
        return Choice("every", kind, best, (measured, why))
    outer, told = _outer_step(apart, ranks, settings.local, optimizer)
    why = (
        f"auto: local updates every {apart.every} steps, {apart.codec}, {apart.overlap} to travel{told} "
        f"({apart.share:.0%} of ideal); every step, {kind}: {best:.0%}"
    )
    return Choice("local", apart.codec, apart.share, (measured, why), apart.every, apart.overlap, parts(apart.every), outer)


def every_step(
    parameters: int, ranks: int, kind: str, settings: schema.Parallel, last: Last, costs: Costs = UNKNOWN
) -> Traffic:
    """What sums of gradients send in a step, with a codec or `none`."""
    bucket = settings.bucket_megabytes * 2**20
    bucket, hops = (bucket, 2 * (ranks - 1)) if kind == "none" else (min(bucket, MESSAGE_BYTES), 2)
    sent, work = meeting(parameters, ranks, kind, settings)
    work = parameters * costs[kind] if kind in costs else work
    return Traffic(sent, hops, max(1, round(4 * parameters / bucket)), work, last=last.of(kind))


def cost_of(
    kind: str,
    longer: float,
    link: Link,
    compute: Compute,
    parameters: int,
    ranks: int,
    settings: schema.Parallel,
    last: Last,
) -> float:
    """Seconds of a core for each number in that codec with which steps are foretold to take as much `longer` as measured."""
    travelling = every_step(parameters, ranks, kind, settings, last, {kind: 0.0})
    beyond = longer - (step_seconds(compute, travelling, link, ranks) - compute.total)
    return compute.core * max(0.0, beyond) / parameters


def local_update(parameters: int, ranks: int, kind: str, every: int, overlap: int, settings: schema.Parallel) -> Traffic:
    """What a local update sends from a meeting to the next, with a codec."""
    sent, work = meeting(parameters, ranks, kind, settings)
    work += 4 * parameters * PASSES / MEMORY
    return Traffic(sent, 2, parts(every), work, every, overlap)


def meeting(parameters: int, ranks: int, kind: str, settings: schema.Parallel) -> tuple[float, float]:
    """(bytes that a rank sends, seconds of a core for encoding and decoding) for a sum of that many numbers."""
    if kind == "none":
        return 8 * parameters * (ranks - 1) / ranks, 0.0
    codec = CODECS[kind](settings.codec)
    sent = 2 * (ranks - 1) * codec.nbytes(-(-parameters // ranks))
    # encoded are all numbers and the sums of this rank's piece; decoded are the others' pieces, and all sums
    work = 4 * parameters * ((1 + 1 / ranks) / ENCODED[kind] + 2 / DECODED)
    return sent, work + sent / CARRIED


@dataclass(frozen=True)
class _Apart:
    """A way to step apart, and the share of ideal speed that it is foretold to reach."""

    codec: str
    every: int
    overlap: int
    share: float


def _outer_step(apart: _Apart, ranks: int, local: schema.Local, optimizer: str) -> tuple[dict[str, Any], str]:
    """Its settings, and how they are told, where the recipe leaves it as it comes.

    Only Muon gains by more than the mean; AdamW does not by the one, and loses by the other (docs/communication.md).
    """
    default = schema.Local()
    if optimizer != "muon":
        return {}, ""
    if (local.outer, local.learning_rate) != (default.outer, default.learning_rate):
        return {}, ""
    if apart.codec == LOCAL_CODECS[-1]:
        return WITH_MOMENTUM, ", with outer momentum"
    if apart.every <= CLOSE and not local.mix:
        rate = LONGER[max(least for least in LONGER if ranks >= least)]
        return {"outer": "sgd", "learning_rate": rate}, f", an outer step of {rate:g}"
    return {}, ""


def _apart(mild: _Apart, coarse: _Apart) -> _Apart:
    """The mildest codec and the fewest steps between meetings that hide the link, or nearly, or come nearest to it."""
    if mild.share < ENOUGH:
        return max(mild, coarse, key=lambda way: way.share)
    return coarse if mild.every > FEW_STEPS and coarse.every <= FEWER * mild.every else mild


def _fewest_steps(kind: str, link: Link, compute: Compute, parameters: int, ranks: int, settings: schema.Parallel) -> _Apart:
    ways = [
        _Apart(kind, every, overlap, _share(link, compute, update, ranks))
        for every in MEETINGS
        for overlap in range(1, every // parts(every) + 1)
        for update in [local_update(parameters, ranks, kind, every, overlap, settings)]
    ]
    few = max(way.share for way in ways if way.every <= FEW_STEPS)
    # so close together that more steps must be worth their loss
    close = min(HIDDEN, max(ENOUGH, few / WORTH))
    for enough, most in ((close, CLOSE), (HIDDEN, FEW_STEPS), (ENOUGH, MEETINGS[-1])):
        for way in ways:
            if way.share >= enough and way.every <= most:
                return way
    return max(ways, key=lambda way: way.share)


def _share(link: Link, compute: Compute, traffic: Traffic, ranks: int) -> float:
    return compute.total / step_seconds(compute, traffic, link, ranks)


def _bits(bandwidth: float) -> str:
    megabits = 8e-6 * bandwidth
    return f"{megabits / 1000:.3g} Gbit/s" if megabits >= 1000 else f"{megabits:.3g} Mbit/s"
