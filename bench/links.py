"""What is said of links beside links: the cost model, and links throttled in the ranks, each next to network namespaces.

The cost model is held against steps that only sleep where they would compute: so what is measured is communication and
how it overlaps, and not who else uses the machine. Started with an argument, this is a rank. Needs root and iproute2.
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import tyro

from report import publish
from shoal.bench.places import places, run_ranks
from shoal.bench.wire import compare
from shoal.parallel.cost import Compute, Traffic, step_seconds
from shoal.parallel.link import Link, measure
from shoal.parallel.wire import Wire
from shoal.parallel.world import join

COMPUTE = Compute(forward=0.1, backward=0.3, update=0.0)
STEPS = 4


@dataclass(frozen=True)
class Case:
    """A step that sums so many fp32 numbers in messages while backward runs, or every so many steps after it."""

    megabits: float
    numbers: int
    messages: int = 8
    every: int = 1


CASES = (
    Case(100, 200_000), Case(100, 1_000_000), Case(100, 4_000_000), Case(10, 40_000), Case(10, 400_000),
    Case(100, 2_000_000, messages=1, every=4), Case(10, 200_000, messages=1, every=4),
)  # fmt: skip


def as_rank(case: Case) -> dict[str, float]:
    """Measured and foretold seconds of a step."""
    with join("cpu", threads=1) as world:
        wire = Wire(world)
        link = measure(wire)
        pieces = [torch.zeros(case.numbers // case.messages) for _ in range(case.messages)]
        took = []
        for _ in range(STEPS):
            wire.sum(torch.zeros(1))
            began = time.perf_counter()
            for step in range(case.every):
                time.sleep(COMPUTE.forward)
                works = []
                for piece in pieces:
                    time.sleep(COMPUTE.backward / case.messages)
                    if step == case.every - 1:
                        works.append(wire.start_sum(piece))
                for work in works:
                    wire.finish(work)
            wire.sum(torch.zeros(1))
            took.append((time.perf_counter() - began) / case.every)
        sent = 8 * case.numbers * (world.size - 1) / world.size
        traffic = Traffic(sent, 2 * (world.size - 1), case.messages, every=case.every)
        return {
            "measured": statistics.median(took),
            "foretold": step_seconds(COMPUTE, traffic, link, world.size),
            "of_the_link_itself": step_seconds(COMPUTE, traffic, Link(case.megabits * 1e6 / 8, 0.0), world.size),
            "megabits_measured": 8e-6 * link.bandwidth,
        }


def cost_rows(repeats: int) -> list[list[dict[str, Any]]]:
    """Every case on two hosts, so many times."""
    found = []
    for case in CASES:
        rows = []
        for _ in range(repeats):
            with places(2, case.megabits, namespaces=True) as where:
                words = [__file__, json.dumps(asdict(case))]
                rows.append(asdict(case) | json.loads(run_ranks(where, lambda rank: words)[0]))  # noqa: B023
        found.append(rows)
    return found


def main(repeats: int = 3) -> None:
    """Measure, and write bench/results/cost.* and throttle.*.

    Args:
        repeats: How often each case is measured; medians are shown.
    """
    rows, raw = [], {}
    for case in cost_rows(repeats):
        first = case[0]
        name = f"{first['megabits']:g} Mbit/s, {first['numbers']:,} numbers in {first['messages']}, every {first['every']}"
        measured, foretold = (statistics.median(row[key] for row in case) for key in ("measured", "foretold"))
        raw[name] = case
        rows.append([name, f"{measured:.3f} s", f"{foretold:.3f} s", f"{foretold / measured:.2f}"])
    notes = ["Two hosts (namespaces); the link as measured by the ranks, latency and bandwidth; a step sleeps 0.4 s."]
    publish("cost", "The cost model", ["a step", "measured", "foretold", "ratio"], rows, notes, raw, script="links")
    rows, raw = [], {}
    for megabits in (100, 10):
        tries = [compare(megabits) for _ in range(repeats)]
        for kind in range(len(tries[0])):
            same = [found[kind] for found in tries]
            name = f"{same[0]['kind']}, {megabits} Mbit/s"
            seconds = [statistics.median(row[where]["seconds"] for row in same) for where in ("namespaces", "throttled")]
            raw[name] = same
            rows.append([name, *(f"{value:.3f} s" for value in seconds), f"{seconds[1] / seconds[0]:.3f}"])
    notes = ["Two ranks; sums of fp32, plain and encoded, that take about a second."]
    publish("throttle", "Throttled ranks", ["", "namespaces", "throttled", "ratio"], rows, notes, raw, script="links")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        print(json.dumps(as_rank(Case(**json.loads(sys.argv[1])))))
    else:
        tyro.cli(main)
