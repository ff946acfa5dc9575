"""What meeting costs on a link: by the cost model, from the computing that was measured.

Inside one machine the rehearsal has measured it. For ranks on several machines, which needn't be there, or for a link that
the recipe slows down, bytes and messages are computed, and `parallel.cost` says what of them computing hides.
"""

from dataclasses import dataclass

from shoal.core.recipe import Recipe
from shoal.parallel.cost import Compute, Traffic, step_seconds
from shoal.parallel.link import Link
from shoal.plan.rehearsal import Rehearsal, passes
from shoal.train.adversary import passes_of
from shoal.train.choice import Last, choose, every_step, local_update, meeting

FORWARD, BACKWARD, UPDATE = 0.31, 0.62, 0.07
"""Shares of a step of one micro-batch, as measured on the model of recipes/gpt-bench.yaml (`bench/network.py`)."""


@dataclass(frozen=True)
class Meeting:
    """How ranks meet: what a rank sends in a step on the average, seconds of it in which it computes nothing, and why."""

    sync: str
    codec: str
    bytes: float
    seconds: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """So many ranks on each of so many machines, over a link where one is to be counted; bytes a rank sends in a step."""

    workers: int
    machines: int
    link: Link | None
    sent: int
    parameters: int
    last: Last

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.workers * self.machines


def link_of(recipe: Recipe, workers: int, machines: int, megabits: float, latency: float) -> Link | None:
    """The link that the ranks of several machines share, or that the recipe slows down; None inside one machine."""
    slow = recipe.parallel.link
    if machines > 1:
        return Link(megabits * 125_000 / workers, latency)  # the ranks of a machine send through one wire
    if workers > 1 and (slow.megabits or slow.latency):
        return Link(slow.megabits * 125_000 or float("inf"), slow.latency)
    return None


def compute_of(rehearsal: Rehearsal, micro_batches: int, over_each: int = 1) -> Compute:
    """Seconds that a rank computes in a step of so many micro-batches, with so many passes `over_each`.

    What is sent travels behind the last pass's backward alone.
    """
    alone = rehearsal.step - rehearsal.waiting
    last = BACKWARD / over_each
    forward = (FORWARD + BACKWARD - last) * alone + (micro_batches - rehearsal.passes) * rehearsal.more
    return Compute(forward, last * alone, UPDATE * alone)


def find_meeting(recipe: Recipe, group: Group, rehearsal: Rehearsal, batch: int, data_ranks: int, at_once: int) -> Meeting:
    """How the ranks would meet, and what that adds to the computing of a step."""
    parallel, ranks = recipe.parallel, group.ranks
    kind, apart = parallel.codec.kind, parallel.sync == "local" and ranks > 1
    if group.link is None:
        every = parallel.local.every if apart else 1
        return Meeting("local" if apart else "every", kind, group.sent, rehearsal.waiting / every)
    compute = compute_of(rehearsal, passes(batch, data_ranks, at_once), passes_of(recipe))
    plain = parallel.shard == "replicate" and parallel.tensor == 1
    if parallel.sync == "auto" and kind == "none" and plain and not parallel.exact:
        equal = (recipe.schedule.batch_start or batch) % ranks == 0
        choice = choose(group.link, compute, group.parameters, ranks, parallel, group.last, equal, recipe.optimizer.kind)
        if choice.sync == "local":
            update = local_update(group.parameters, ranks, choice.codec, choice.every, choice.overlap, parallel)
            sent = update.sent / choice.every
        else:
            sent = every_step(group.parameters, ranks, choice.codec, parallel, group.last).sent
        return Meeting(choice.sync, choice.codec, sent, compute.total / choice.share - compute.total, choice.reasons)
    traffic = _traffic(recipe, group, apart, plain)
    seconds = step_seconds(compute, traffic, group.link, ranks) - compute.total
    return Meeting("local" if apart else "every", kind, traffic.sent / traffic.every, seconds)


def _traffic(recipe: Recipe, group: Group, apart: bool, plain: bool) -> Traffic:
    parallel, kind = recipe.parallel, recipe.parallel.codec.kind
    if apart:
        sent, work = meeting(group.parameters, group.ranks, kind, parallel)
        return Traffic(sent, 2, parallel.local.fragments, work, parallel.local.every, parallel.local.overlap)
    if plain and not parallel.exact:
        return every_step(group.parameters, group.ranks, kind, parallel, group.last)
    return Traffic(group.sent, 2 * (group.ranks - 1), max(1, round(group.sent / (parallel.bucket_megabytes * 2**20))))
