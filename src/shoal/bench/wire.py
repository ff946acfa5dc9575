"""The wire alone: how long sums take on a link, real or throttled, and whether the bytes counted are the bytes sent.

Started as a module, this is one rank: it prints what it found as a JSON object.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shoal.bench.places import places, run_ranks
from shoal.core import recipe
from shoal.parallel.codecs import CODECS
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.throttle import Throttle
from shoal.parallel.wire import Wire
from shoal.parallel.world import join

COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")


@dataclass(frozen=True)
class Task:
    """`repeats` times each collective of `kinds` on `numbers` fp32 values; ranks throttle themselves to `megabits`."""

    kinds: tuple[str, ...]
    numbers: int
    repeats: int = 3
    megabits: float = 0.0
    latency: float = 0.0


Found = dict[str, dict[str, Any]]
"""By kind, the least of each: `seconds`, and bytes `counted` and `sent` (0 without an interface of its own)."""


def measure(task: Task, ranks: int, megabits: float = 0.0, namespaces: bool = False) -> list[Found]:
    """What each rank found; `namespaces`: on hosts with links of `megabits`, beside what the task throttles."""
    with places(ranks, megabits, namespaces) as where:
        printed = run_ranks(where, lambda rank: ["-m", "shoal.bench.wire", json.dumps(asdict(task))])
    return [json.loads(text) for text in printed]


def compare(megabits: float, ranks: int = 2, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Plain and coded sums that take about so long on such a link: on hosts with that link, and throttled."""
    numbers = int(seconds * megabits * 1e6 / 8 / 4 / (2 * (ranks - 1) / ranks)) // 64 * 64
    task = Task(("sum", "coded sum"), numbers)
    real = measure(task, ranks, megabits, namespaces=True)[0]
    throttled = measure(replace(task, megabits=megabits), ranks)[0]
    return [
        {"kind": kind, "megabits": megabits, "ranks": ranks, "ratio": throttled[kind]["seconds"] / real[kind]["seconds"]}
        | {"namespaces": real[kind], "throttled": throttled[kind]}
        for kind in task.kinds
    ]


def collective(kind: str, wire: Wire, numbers: int) -> Callable[[], Any]:
    """Something that does it once, and returns when it is done."""
    axis = wire.everyone
    values = torch.ones(numbers)
    whole = torch.ones(axis.size * numbers)
    if kind == "coded sum":
        sums = CodedSum(wire, wire.own_channel(axis), CODECS["bf16"](recipe.Codec()), 1.0, wire.own_channel(axis))
        whole = torch.ones(-(-numbers // sums.multiple) * sums.multiple)
        return lambda: wire.finish(sums.start(whole, None))
    return {
        "sum": lambda: wire.finish(wire.start_sum(values)),
        "largest": lambda: wire.largest(values, axis),
        "gather": lambda: wire.finish(wire.start_gather(whole, values, axis)),
        "scatter sum": lambda: wire.finish(wire.start_scatter_sum(values, whole, axis)),
        "all to all": lambda: wire.finish(wire.start_all_to_all(torch.empty_like(whole), whole, axis)),
        "exchange": lambda: wire.exchange(values, torch.empty_like(values), axis.rank ^ 1),
        "broadcast": lambda: wire.broadcast(values),
        "gather objects": lambda: wire.gather_objects(bytes(4 * numbers)),
    }[kind]


KINDS = ("sum", "coded sum", "largest", "gather", "scatter sum", "all to all", "exchange", "broadcast", "gather objects")
"""All collectives of the wire that training uses."""


def _as_rank(task: Task) -> Found:
    with join("cpu", threads=1, timeout=600) as world:
        slow = Throttle(task.megabits, task.latency, world.device) if task.megabits or task.latency else None
        wire = Wire(world, throttle=slow)
        return {kind: _repeat(wire, kind, task) for kind in task.kinds}


def _repeat(wire: Wire, kind: str, task: Task) -> dict[str, Any]:
    once = collective(kind, wire, task.numbers)
    once()  # connections are made, and all are here
    rows = []
    for _ in range(task.repeats):
        counted, sent = wire.bytes_sent, _sent()
        began = time.perf_counter()
        once()
        seconds = time.perf_counter() - began
        wire.gather_objects(None)  # what others still send must have come
        rows.append((seconds, wire.bytes_sent - counted, _sent() - sent))
    # a busy machine drops packets between namespaces, and what is sent again is sent
    return dict(zip(("seconds", "counted", "sent"), map(min, zip(*rows, strict=True)), strict=True))


def _sent() -> int:
    return int(COUNTER.read_text()) if COUNTER.exists() else 0


if __name__ == "__main__":
    print(json.dumps(_as_rank(Task(**json.loads(sys.argv[1])))))  # noqa: T201
