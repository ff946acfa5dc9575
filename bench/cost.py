"""The cost model beside measurements: steps that only sleep where they would compute, over links between namespaces.

So what is measured is communication and how it overlaps, and not who else uses the machine. Prints a row a case; started
with an argument, it is a rank. Needs root and iproute2.
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import torch

from shoal.bench.places import places, run_ranks
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


def main() -> None:
    """Measure all cases on two hosts."""
    for case in CASES:
        with places(2, case.megabits, namespaces=True) as where:
            words = [__file__, json.dumps(asdict(case))]
            row = json.loads(run_ranks(where, lambda rank: words)[0])  # noqa: B023
        print(json.dumps(asdict(case) | row | {"foretold_over_measured": row["foretold"] / row["measured"]}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(as_rank(Case(**json.loads(sys.argv[1])))))
    else:
        main()
