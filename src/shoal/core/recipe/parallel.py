"""How ranks divide the work and meet."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, Strict

from shoal.core.recipe.fields import Count, Fraction, Momentum, NonNegative, Positive, PositiveFloat, section


@section
class Codec:
    """How what ranks send is made small."""

    kind: Literal["none", "bf16", "fp16", "int8", "int4", "two_bit", "topk", "powersgd", "sign"] = "none"
    """Half precision, blocks of integers, two bits a value, the largest alone, two thin matrices, or one bit a value."""
    feedback: Annotated[bool, Strict()] = True
    """Keep what a codec drops, and add it next time."""
    feedback_decay: Fraction = 1.0
    """Share of the kept that is added."""
    keep: Annotated[float, Strict(), Field(gt=0, le=1)] = 1 / 64
    """`topk`: share of the values that travel."""
    rank: Positive = 4
    """`powersgd`: columns of the thin matrices."""


@section
class Local:
    """Local updates (DiLoCo, Douillard et al. 2023, arXiv:2311.08105): ranks step apart, and meet every so many steps."""

    every: Positive = 15
    """Steps between meetings."""
    outer: Literal["sgd", "nesterov"] = "sgd"
    """The outer optimizer: `sgd` at a rate of 1 takes the mean of the ranks' weights."""
    learning_rate: PositiveFloat = 1.0
    """Of the outer optimizer; with `nesterov` 0.4 to 0.9."""
    momentum: Momentum = 0.5
    """Of the outer optimizer, `nesterov` alone; the more ranks and steps between meetings, the more of it: up to 0.9."""
    warmup: Count = 0
    """Meetings over which the outer momentum rises from 0."""
    fragments: Positive = 1
    """Parts of the model that meet at different times, evenly spread (streaming)."""
    overlap: Count = 0
    """Steps that ranks go on while a fragment travels."""
    mix: Fraction = 0.0
    """Share of a rank's own weights that stays when a fragment arrives (0: the common ones, and what the rank has changed
    since it sent)."""
    after: Count = 0
    """Steps with a meeting each before ranks part (post-local SGD)."""


@section
class Server:
    """Parameters kept by servers, to which workers push and from which they pull (needs the extra `cluster`)."""

    shards: Positive = 1
    """Servers among which the parameters are divided."""
    mode: Literal["synchronous", "stale", "asynchronous"] = "synchronous"
    """Whether a worker waits for all others, for those more than `bound` steps behind, or for none."""
    bound: Count = 2
    """`stale`: steps that a worker may be ahead of the slowest."""
    lease: PositiveFloat = 30.0
    """Seconds without a sign after which the others no longer wait for a worker."""
    restarts: Count = 3
    """How often a worker that died is started again."""


@section
class Link:
    """A link that is slower than the real one, for measuring what a slower network would do (0: as it is)."""

    megabits: NonNegative = 0.0
    """Millions of bits that a rank sends a second, at most."""
    latency: NonNegative = 0.0
    """Seconds from sending to receiving."""


@section
class Parallel:
    """How ranks divide the work and meet."""

    sync: Literal["auto", "every", "local", "server"] = "auto"
    """When ranks meet: `every` step, every so many steps (`local`), through a `server`, or as the link asks (`auto`)."""
    codec: Codec = field(default_factory=Codec)
    local: Local = field(default_factory=Local)
    server: Server = field(default_factory=Server)
    link: Link = field(default_factory=Link)
    shard: Literal["replicate", "zero1", "zero2", "zero3"] = "replicate"
    """What ranks divide instead of each holding all: nothing, the optimizer's state, gradients too, parameters too."""
    shard_ranks: Count = 0
    """Ranks that divide one copy of it; others hold further copies (0: all ranks, one copy)."""
    tensor: Positive = 1
    """Ranks that divide each matrix product; they read the same sequences."""
    exact: Annotated[bool, Strict()] = False
    """Give the same bits on 1, 2, 4, … ranks: one fixed order for all sums, one thread a rank unless `threads` is given."""
    virtual_shards: Positive = 8
    """`exact`: into how many micro-batches a step is always cut, a power of two; as many ranks at most."""
    bucket_megabytes: PositiveFloat = 8.0
    """Gradients that travel in one message; smaller overlaps earlier, larger costs less per byte."""
    threads: Count = 0
    """Compute threads a rank (0: the machine's cores divided by the ranks on it)."""
    timeout: PositiveFloat = 300.0
    """Seconds after which a stuck collective ends the run."""
