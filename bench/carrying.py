"""What carrying a byte costs the core that computes: matrix products of two hosts of a core each, alone and beside traffic.

Over a link whose frames leave whole, as `shoal.bench.hosts` makes it, over the same that cuts them into packets first, and
without a limit. Started with an argument, this is a rank. Needs root and iproute2.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from report import publish
from shoal.bench.hosts import LEAST_BURST, Host
from shoal.bench.places import places, run_ranks
from shoal.parallel.link import measure
from shoal.parallel.wire import Wire
from shoal.parallel.world import join

SECONDS = 1.5
"""Of computing, as long as a step of the model that Shoal is measured with."""

MESSAGE = 1 << 17
"""Bytes, as long as those of a sum in int4."""

MOST = 56e6
"""Bytes in that time."""

CUT_SECONDS = 0.002
"""What a link that cuts frames may send at once."""


@dataclass(frozen=True)
class Case:
    """A link of so many megabits a second (0: no limit); `cut`: frames become packets before they leave."""

    name: str
    megabits: float
    cut: bool = False


CASES = (
    Case("no limit", 0),
    Case("100 Mbit/s, frames leave whole", 100),
    Case("100 Mbit/s, frames are cut", 100, cut=True),
    Case("10 Mbit/s", 10),
)


def as_rank(tries: int) -> dict[str, float]:
    """Seconds of the same products, alone and beside so many bytes; the median of pairs one after the other."""
    with join("cpu", threads=1) as world:
        wire = Wire(world)
        link = measure(wire)
        left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
        rounds = wire.gather_objects(int(SECONDS / min(timed(lambda: left @ right) for _ in range(5))))[0]
        count = wire.gather_objects(max(1, int(min(0.9 * link.bandwidth * SECONDS, MOST) / MESSAGE)))[0]
        pieces = torch.zeros(world.size, MESSAGE // (world.size - 1), dtype=torch.uint8)

        def compute() -> None:
            for _ in range(rounds):
                left @ right

        def travel() -> Generator[None, None, Any]:
            for _ in range(count):
                work = wire.start_all_to_all(torch.empty_like(pieces), pieces, wire.everyone)
                yield
                wire.wait(work)

        slower, arrived = [], []
        for _ in range(tries):
            wire.gather_objects(None)
            alone = timed(compute)
            wire.gather_objects(None)
            travelling = wire.in_stages(travel())
            beside = timed(compute)
            after = timed(travelling.wait)
            slower.append(beside / alone - 1)
            arrived.append(beside / (beside + after))
        share, sent = statistics.median(slower), count * MESSAGE * statistics.median(arrived)
        return {"slower": share, "megabytes": 1e-6 * sent, "ns_a_byte": 1e9 * share * SECONDS / sent}


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def cut_frames(host: Host, megabits: float) -> None:
    """Let the host's link take no frame that is larger than a few packets whole."""
    bits = round(megabits * 1e6)
    burst = max(LEAST_BURST, round(bits / 8 * CUT_SECONDS))
    shape = ["rate", f"{bits}bit", "burst", str(burst), "latency", "200ms"]
    for words in (
        ["ip", "link", "set", "eth0", "gso_max_size", "65536"],
        ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *shape],
    ):
        subprocess.run(host.command(words), check=True)


def main(tries: int = 9) -> None:
    """Measure, and write bench/results/carrying.*.

    Args:
        tries: Pairs of computing alone and beside traffic; medians are shown.
    """
    rows, raw = [], {}
    for case in CASES:
        with places(2, case.megabits, namespaces=True) as where:
            for host in where:
                if case.cut and isinstance(host, Host):
                    cut_frames(host, case.megabits)
            found = [json.loads(line) for line in run_ranks(where, lambda rank: [__file__, str(tries)])]
        raw[case.name] = found
        slower, megabytes, each = (statistics.mean(one[key] for one in found) for key in found[0])
        ranks = ", ".join(f"{one['slower']:.1%}" for one in found)
        rows.append([case.name, f"{megabytes:.1f}", f"{slower:.1%} ({ranks})", f"{each:.1f}"])
    notes = [f"Two hosts (namespaces) of a core each; {SECONDS:g} s of matrix products alone, and beside as many bytes."]
    publish("carrying", "Carrying", ["link", "MB", "slower by (each rank)", "ns a byte"], rows, notes, raw)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].isdigit():
        print(json.dumps(as_rank(int(sys.argv[1]))))
    else:
        tyro.cli(main)
