"""Training speed over networks: rows of hosts × link × method, each a run of `shoal pretrain` on every host.

Ideal is what as many ranks do at the same time, each alone on its host and with its share of the batch: nothing is sent,
and whatever cores and memory they have to share, they share as those do that talk. In each sitting it is measured on a link
first, after every few rows, and last, and a row is held against those next to it: a machine that others use is not as fast
all day. All is kept in one file, row by row, and what is there is not measured again.
"""

import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from shoal.bench.hosts import reason_against
from shoal.bench.methods import METHODS, PEERS, ROUNDS, Keys, is_served
from shoal.bench.places import Place, RanksFailed, places, run_ranks
from shoal.bench.raw import Raw, Row
from shoal.bench.served import run_served
from shoal.core.files import read_json
from shoal.core.recipe import Recipe
from shoal.data.shards import Corpus
from shoal.parallel.cost import Compute, Traffic, step_seconds
from shoal.parallel.link import Link
from shoal.parallel.throttle import FRAMING

WARMUP = 3
"""Steps that do not count: the first compiles."""

CHECKOUT = Path(__file__).resolve().parents[3]

IDEAL = "ideal"

ROWS_AN_IDEAL = 4
"""Rows that are measured before the ideal is once more."""

FORWARD, BACKWARD, UPDATE = 0.31, 0.62, 0.07
"""Shares of a step of one rank alone, as measured on the model of recipes/gpt-bench.yaml."""


@dataclass(frozen=True)
class Plan:
    """What to measure: a recipe on so many hosts over links of so many Mbit/s (0: as fast as the machine).

    `steps` are those that count, more where a method meets less often. A run that would take longer than `longest` seconds
    is not made: its row is computed by the cost model, and says so. With parameter servers there is none.
    """

    recipe_file: Path
    recipe: Recipe
    overrides: list[str]
    hosts: tuple[int, ...] = (2, 4)
    links: tuple[float, ...] = (0.0, 100.0, 10.0, 1.0)
    methods: tuple[str, ...] = (*METHODS, *PEERS)
    steps: int = 12
    longest: float = 600.0


def measure(plan: Plan, raw: Raw, tell: Callable[[str], None]) -> list[str]:
    """Measure what `raw` lacks of the plan, row by row; what failed, which does not keep the others from being measured."""
    against = reason_against()
    if against is not None:
        tell(f"links are throttled inside the ranks: {against}")
    began, failed = datetime.now(UTC).isoformat(timespec="seconds"), []
    for number in plan.hosts:
        for megabits in plan.links:
            with places(number, megabits, against is None) as where:
                for method in _turns(plan, raw, number, megabits, against is None):
                    key = {"kind": "speed", "hosts": number, "megabits": megabits, "method": method}
                    computed, why = _instead(plan, raw, key, against is None)
                    if why is not None:
                        tell(f"{number} hosts, {megabits:g} Mbit/s, {method}: left out, {why}")
                        continue
                    try:
                        row = _row(plan, where, megabits, method, against is None, computed)
                        raw.add(key | row | {"began": began})
                        tell(describe(raw, raw.rows[-1]))
                    except RanksFailed as error:
                        failed.append(f"{number} hosts, {megabits:g} Mbit/s, {method}: {error}")
                        tell(failed[-1])
    return failed


def _turns(plan: Plan, raw: Raw, number: int, megabits: float, namespaces: bool) -> Iterator[str]:
    """What `raw` lacks on a link, one after the other, and the ideal before, between and after what is measured."""
    place = {"kind": "speed", "hosts": number, "megabits": megabits}
    lacking = [method for method in dict.fromkeys(plan.methods) if raw.find(place | {"method": method}) is None]
    taken, since = raw.find(place | {"method": IDEAL}) is None, 0
    if taken:
        yield IDEAL
    for method in lacking:
        is_held = method not in PEERS and _instead(plan, raw, place | {"method": method}, namespaces) == (None, None)
        if is_held and (not taken or since == ROWS_AN_IDEAL):
            yield IDEAL
            taken, since = True, 0
        yield method
        since += is_held
    if since:
        yield IDEAL


def describe(raw: Raw, row: Row) -> str:
    """A row in a line; the ideal is the one before, as that after it is still to come."""
    share = raw.share(row)
    link = f"{row['megabits']:g} Mbit/s" if row["megabits"] else "unlimited"
    return (
        f"{row['hosts']} hosts, {link}, {row['method']}: {row['tokens_per_second']:,.0f} tokens/s a rank"
        f"{'' if share is None else f', {share:.1%} of ideal'}, {row['wire_bytes'] / 1e6:.3f} MB a step ({row['how']})"
    )


def _row(
    plan: Plan, where: Sequence[Place], megabits: float, method: str, namespaces: bool, computed: Row | None = None
) -> Row:
    """What was computed, or else is measured."""
    tokens = plan.recipe.train.global_batch * (plan.recipe.model.context or 1024) / len(where)
    if computed is not None:
        found = computed
    else:
        throttled = 0.0 if namespaces else megabits
        found = _peer(plan, where, method) if method in PEERS else _shoal(plan, where, throttled, method)
        found["how"] = "namespaces" if namespaces else "throttled"
    return {
        **found,
        "tokens_per_second": tokens / found["step_seconds"],
        "bits_per_parameter": 8 * found["wire_bytes"] / found["parameters"],
        "load_average": os.getloadavg()[0],
    }


def _foretold(method: str) -> bool:
    """What `auto` sends on one link says nothing of another; servers' and a peer's ways are not those of the cost model."""
    return method not in (IDEAL, "auto", *ROUNDS) and not is_served(METHODS.get(method, {}))


def _instead(plan: Plan, raw: Raw, key: Row, namespaces: bool) -> tuple[Row | None, str | None]:
    """What stands in for measuring a row: itself by the cost model where it would take too long, or why it is left out."""
    number, megabits, method = key["hosts"], key["megabits"], key["method"]
    found = _computed(plan, raw, number, megabits, method, raw.ideal(key)) if _foretold(method) else None
    if found is not None and found["step_seconds"] * _steps(plan, method) > plan.longest:
        return found, None
    served = is_served(METHODS.get(method, {}))
    if megabits and not namespaces and (served or method in PEERS):
        return None, "its ranks don't slow themselves down, so a link needs hosts of their own, and root"
    minutes = _served_minutes(plan, raw, key) if served and megabits else 0.0
    return None, f"it would take {minutes:.0f} minutes" if minutes * 60 > plan.longest else None


def _served_minutes(plan: Plan, raw: Raw, key: Row) -> float:
    """How long a run through parameter servers takes at most, by one on a faster link; 0 where there was none."""
    faster = [
        row["step_seconds"] * row["megabits"] / key["megabits"]
        for row in raw.rows
        if row["kind"] == "speed" and all(row[name] == key[name] for name in ("hosts", "method"))
        and row["megabits"] > key["megabits"]
    ]  # fmt: skip
    return (WARMUP + plan.steps + 1) * min(faster, default=0.0) / 60


def _every(plan: Plan, method: str) -> int:
    """Steps from a meeting to the next."""
    if method in ROUNDS:
        return ROUNDS[method]
    keys = METHODS.get(method, {})
    every = keys.get("parallel.local.every", plan.recipe.parallel.local.every)
    assert isinstance(every, int)
    return every if keys.get("parallel.sync") == "local" else 1


def _steps(plan: Plan, method: str) -> int:
    """Steps that count: whole rounds."""
    every = _every(plan, method)
    return -(-plan.steps // every) * every


def _shoal(plan: Plan, where: Sequence[Place], megabits: float, method: str) -> Row:
    alone = method == IDEAL
    keys: Keys = {} if alone else dict(METHODS[method])
    steps = _steps(plan, method)
    keys |= {
        "name": "network",
        "train.steps": WARMUP + steps + 1,  # the last also ends the run, which copies that step apart do together
        "train.tokens": 0,
        "train.minutes": 0.0,
        "train.device": "cpu",
        "train.global_batch": plan.recipe.train.global_batch // (len(where) if alone else 1),
        "data.directory": str(Corpus.open(Path(plan.recipe.corpus_directory)).directory.resolve()),
        "evaluation.every": 0,
        "evaluation.final_sequences": 2,
        "parallel.threads": 1,
        "parallel.timeout": 7200.0,
        "parallel.link.megabits": megabits,
        "samples.prompts": [],
        "optimizer.onebit_warmup": WARMUP - 1,
    }
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        runs = [Path(folder) / (str(rank) if alone else "all") for rank in range(len(where))]
        words = ["-m", "shoal", "pretrain", str(plan.recipe_file), "--quiet", *plan.overrides, *_flags(keys)]
        if is_served(keys):
            run_served(where, [*words, "--runs", str(runs[0])])
        else:
            run_ranks(where, lambda rank: [*words, "--runs", str(runs[rank])], alone)
        found = [_read(path / "network", steps) for path in sorted({*runs})]
    return {key: statistics.mean(one[key] for one in found) for key in found[0]} | {"steps": steps}


def _flags(keys: Keys) -> list[str]:
    words: list[str] = []
    for key, value in keys.items():
        words += [f"--{key}", json.dumps(value) if isinstance(value, list) else str(value)]
    return words


def _read(run: Path, steps: int) -> Row:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counted = [line for line in lines if "tokens_per_second" in line][-steps - 1 : -1]
    means = {
        key: statistics.mean(line[name] for line in counted)
        for key, name in (("step_seconds",) * 2, ("wire_bytes",) * 2, ("blocked_seconds", "sync_seconds"))
    }
    return means | {"parameters": read_json(run / "result.json")["parameters"]}


def _peer(plan: Plan, where: Sequence[Place], method: str) -> Row:
    """What others offer, on the shape of the recipe's model; its ideal is its own loop, as many times alone."""
    model, recipe = plan.recipe.model, plan.recipe
    numbers = {
        "corpus": Path(recipe.corpus_directory).resolve(),
        "layers": model.layers, "dim": model.dim, "heads": model.heads, "context": model.context,
        "vocabulary": recipe.tokenizer.vocabulary,
        "steps": WARMUP + _steps(plan, method), "warmup": WARMUP, "threads": 1,
    }  # fmt: skip
    script, *flags = PEERS[method]
    script = str(CHECKOUT / "bench" / "peers" / script)
    own = CHECKOUT / ".bench" / "venv" / "bin" / "python"  # bench/setup_peers.sh makes it
    python = str(own) if method in ROUNDS and own.exists() else sys.executable
    options = [word for key, value in numbers.items() for word in (f"--{key}", str(value))]

    def run(batch: int, alone: bool) -> list[Row]:
        words = [script, *options, "--batch", str(batch), *flags]
        return [json.loads(printed.splitlines()[-1]) for printed in run_ranks(where, lambda rank: words, alone, python)]

    ideal = run(recipe.train.global_batch // len(where), alone=True)
    return {
        **run(recipe.train.global_batch, alone=False)[0],
        "ideal_step_seconds": statistics.mean(row["step_seconds"] for row in ideal),
        "steps": _steps(plan, method),
    }


def _computed(plan: Plan, raw: Raw, number: int, megabits: float, method: str, ideal: float | None) -> Row | None:
    """By the cost model, from what was sent and computed on a faster link, and the seconds of an ideal step on this one.

    None where nothing was measured.
    """
    faster = [
        row for row in raw.rows
        if (row["kind"], row["hosts"], row["method"]) == ("speed", number, method) and row["how"] != "computed"
        and (row["megabits"] == 0 or row["megabits"] > megabits)
    ]  # fmt: skip
    if not faster or ideal is None or not megabits:
        return None
    alone: float = faster[-1].get("ideal_step_seconds") or ideal
    every, keys = _every(plan, method), METHODS.get(method, {})
    fragments, overlap = (keys.get(f"parallel.local.{key}", default) for key, default in (("fragments", 1), ("overlap", 0)))
    assert isinstance(fragments, int) and isinstance(overlap, int)
    buckets = -(-4 * faster[-1]["parameters"] // int(plan.recipe.parallel.bucket_megabytes * 2**20))
    last = plan.recipe.tokenizer.vocabulary * (plan.recipe.model.dim or 0) / faster[-1]["parameters"]
    traffic = Traffic(
        faster[-1]["wire_bytes"] * every, 2 * (number - 1), fragments if every > 1 else int(buckets),
        every=every, overlap=overlap, last=last,
    )  # fmt: skip
    link = Link(megabits * 1e6 / 8 / FRAMING, 0.0)
    compute = Compute(FORWARD * alone, BACKWARD * alone, UPDATE * alone)
    seconds = step_seconds(compute, traffic, link, number)
    kept = {key: value for key, value in faster[-1].items() if key in ("wire_bytes", "parameters")}
    times = {"step_seconds": seconds, "blocked_seconds": seconds - alone, "ideal_step_seconds": alone}
    return kept | times | {"how": "computed", "steps": 0}


def table(raw: Raw) -> Table:
    """All speeds: a row a method, a column a link, for each number of hosts."""
    speeds = [row for row in raw.rows if row["kind"] == "speed"]
    links = sorted({row["megabits"] for row in speeds}, key=lambda link: -link or -math.inf)
    names = [f"{link:g} Mbit/s" if link else "unlimited" for link in links]
    drawn = Table("hosts", "method", *names, "MB a step", "bits a parameter", "held-out loss", box=None)
    drawn.title = "tokens/s a rank, % of ideal (≈: computed by the cost model)"
    for hosts, method in dict.fromkeys((row["hosts"], row["method"]) for row in speeds):
        mine = {row["megabits"]: row for row in speeds if (row["hosts"], row["method"]) == (hosts, method)}
        some = next(iter(mine.values()))
        cells = [_cell(raw, mine[link]) if link in mine else "" for link in links]
        lost = [
            row["eval_loss"] for row in raw.rows if (row["kind"], row["hosts"], row["method"]) == ("loss", hosts, method)
        ]
        sizes = (f"{some['wire_bytes'] / 1e6:.3f}", f"{some['bits_per_parameter']:.2f}")
        drawn.add_row(str(hosts), method, *cells, *sizes, f"{statistics.mean(lost):.4f}" if lost else "")
    return drawn


def _cell(raw: Raw, row: Row) -> str:
    share, speed = raw.share(row), row["tokens_per_second"]
    if row["method"] == IDEAL:  # of which there are several
        place = {key: row[key] for key in ("kind", "hosts", "megabits", "method")}
        speed = statistics.mean(other["tokens_per_second"] for other in raw.rows if place.items() <= other.items())
    return f"{'≈' if row['how'] == 'computed' else ''}{speed:,.0f}" + ("" if share is None else f" {share:.1%}")


def check_cost_model(plan: Plan, raw: Raw) -> list[Row]:
    """Measured rows beside what the cost model says of them."""
    found = []
    for row in raw.rows:
        if row["kind"] == "speed" and row["how"] != "computed" and row["method"] in METHODS and _foretold(row["method"]):
            computed = _computed(plan, raw, row["hosts"], row["megabits"], row["method"], raw.ideal(row))
            if computed is not None:
                ratio = computed["step_seconds"] / row["step_seconds"]
                found.append({**row, "computed_seconds": computed["step_seconds"], "computed_over_measured": ratio})
    return found
