"""What a step takes, by the alpha-beta model (Hockney 1994): a message of n bytes takes α + n β, latency and bytes."""

from dataclasses import dataclass

from shoal.parallel.link import Link


@dataclass(frozen=True)
class Compute:
    """Seconds that a rank computes in a step, with nothing to wait for."""

    forward: float
    backward: float
    update: float = 0.0
    core: float = 1.0
    """The share of a core that its thread has; others may have the rest."""

    @property
    def total(self) -> float:
        """All of a step."""
        return self.forward + self.backward + self.update


@dataclass(frozen=True)
class Traffic:
    """What a strategy does with the wire: at each meeting, `every` so many steps, a rank sends `sent` bytes.

    They travel in `messages`, each passed on `hops` times, and `work` seconds of a core go into encoding and decoding them.
    With `overlap` 0, ranks that meet every step send while backward runs, and others stop until all is there; else each of
    the `messages` has so many steps to arrive in. `last` is the share that backward reaches only at its end: that of the
    token embedding, a quarter of a small model.
    """

    sent: float
    hops: int
    messages: int = 1
    work: float = 0.0
    every: int = 1
    overlap: int = 0
    last: float = 0.0


def step_seconds(compute: Compute, traffic: Traffic, link: Link, ranks: int) -> float:
    """Seconds that a step takes on the average.

    With F, B and U the seconds of forward, backward and update, W of encoding (which takes the core from computing, and
    longer where this rank has but a share of it), M messages, C = sent / bandwidth + hops × latency the seconds that all of
    them travel, and S = 2 (N − 1) × latency those of the small sum that ends a step in which ranks meet:

        every step     F + B + W + U + S + max(C − B (M − 1) / M,  C / M,  C × last)
        every H steps  F + B + U + (W + S + C) / H
        overlapping    F + B + U + (W + M × max(0, C / M − overlap × (F + B + U))) / H

    The first: message i of M is there to be sent after i / M of backward, and the link takes one after the other, so either
    the link is busy from the first message on, or what remains after backward is the last one, or what came last. One rank
    sends nothing.
    """
    if ranks == 1:
        return compute.total
    travel = link.seconds(traffic.sent, traffic.hops)
    each, meeting, work = travel / traffic.messages, 2 * (ranks - 1) * link.latency, traffic.work / compute.core
    if traffic.overlap:
        exposed = traffic.messages * max(0.0, each - traffic.overlap * compute.total)
        return compute.total + (work + exposed) / traffic.every
    if traffic.every > 1:
        return compute.total + (work + meeting + travel) / traffic.every
    hidden = compute.backward * (traffic.messages - 1) / traffic.messages
    return compute.total + work + meeting + max(travel - hidden, each, travel * traffic.last)
