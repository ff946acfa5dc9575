"""Measure this build on this machine: whether every division of the work gives the same training, and how fast on a network.

    shoal bench parity --ranks 2 --json
    shoal bench network recipes/gpt-bench.yaml --quick
    shoal bench network --links 100 10 --methods fp32 int8 --hosts 2
    shoal bench network --losses recipes/gpt-shakespeare.yaml --seeds 1 2 3 --picture docs/network.png

`parity`: each case trains a small model for 20 steps over real ranks and compares losses, gradient norms and weights with a
plain training in fp64. It fails when one differs by more than 1e-5.

`network`: hosts with limited links (network namespaces for root, else throttled ranks), each a rank of one core, and every
method next to what as many ranks do alone. Rows are kept in a file as they come; what it has is not measured again.
"""

import os
import signal
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from shoal.bench import losses, network
from shoal.bench.methods import METHODS, PEERS, QUICK, is_served
from shoal.bench.picture import draw
from shoal.bench.raw import Raw
from shoal.core.device import find_device
from shoal.core.errors import InputError, Interrupted, ShoalError
from shoal.core.files import read_json, write_json
from shoal.core.recipe_file import read_recipe
from shoal.data.plan import open_corpora
from shoal.parallel.launch import launch
from shoal.parallel.world import is_rank, join
from shoal.train import parity


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal bench`."""

    what: Annotated[Literal["parity", "network"], tyro.conf.Positional]
    """`parity`: every division of the work against plain training in fp64; `network`: speed over slow links."""
    recipe: Annotated[Path, tyro.conf.Positional] = Path("recipes/gpt-bench.yaml")
    """network: what to train."""
    ranks: tuple[int, ...] = (1, 2, 4)
    """parity: numbers of ranks to try."""
    device: Literal["cpu", "cuda"] = "cpu"
    """parity: where to compute; with more ranks than GPUs, all share the first."""
    hosts: tuple[int, ...] = (2, 4)
    """network: numbers of hosts."""
    links: tuple[float, ...] = (0.0, 100.0, 10.0, 1.0)
    """network: millions of bits a second that a host sends, at most (0: as many as it can)."""
    methods: tuple[str, ...] = ()
    """network: which ones, by name (none: all, but parameter servers where Ray is not installed)."""
    measured: int = 12
    """network: steps that count, at least; after three that don't."""
    longest: float = 600.0
    """network: seconds; a run that would take longer is computed by the cost model instead, and marked so, or left out."""
    losses: Path | None = None
    """network: a recipe to train with every method to 20 tokens a parameter, over loopback, for the loss."""
    seeds: tuple[int, ...] = (1,)
    """network: of the trainings for the loss."""
    picture: Path | None = None
    """network: draw loss against time and bytes here (PNG)."""
    results: Path = Path("bench/results/network.json")
    """network: where rows are kept."""
    quick: bool = False
    """network: a few methods on two hosts and two links, in five minutes."""
    scratch: Path | None = None
    """For the ranks that this starts: where they leave what they found."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any] | None:
    """Measure, show, and return what was found."""
    return _network(arguments, overrides) if arguments.what == "network" else _parity(arguments)


def _network(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Measure what the file of results lacks."""
    known = (*METHODS, *PEERS)
    unknown = [name for name in arguments.methods if name not in known]
    if unknown:
        raise InputError(f"--methods: there is no '{unknown[0]}'; accepted: {', '.join(map(repr, known))}")
    ray = find_spec("ray") is not None
    served = [name for name in known if is_served(METHODS.get(name, {}))]
    if not ray and (asked := [name for name in served if name in arguments.methods]):
        raise InputError(f"--methods: '{asked[0]}' needs Ray: pip install 'shoal[cluster]' (or: pip install ray)")
    methods = arguments.methods or tuple(name for name in known if ray or name not in served)
    plan = network.Plan(
        arguments.recipe, read_recipe(arguments.recipe, overrides), overrides, arguments.hosts, arguments.links,
        methods, arguments.measured, arguments.longest,
    )  # fmt: skip
    if arguments.quick:
        plan = replace(plan, hosts=(2,), links=(0.0, 10.0), methods=QUICK, steps=4, longest=60.0)
    if arguments.losses is not None:
        open_corpora(read_recipe(arguments.losses, []))  # what is missing is told before hours of speeds
    raw = Raw(arguments.results)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)  # what ranks say has brackets
    signal.signal(signal.SIGTERM, _leave)
    failed = network.measure(plan, raw, console.print)
    if arguments.losses is not None:
        wanted = losses.Plan(arguments.losses, plan.hosts, plan.methods, arguments.seeds)
        losses.measure(wanted, raw, console.print)
    if arguments.picture is not None:
        draw(raw, plan.hosts[0], arguments.picture)
    if not arguments.json:
        for table in (network.table(raw), losses.table(raw)):
            if table.row_count:
                Console(highlight=False).print(table, "")
    if failed:
        raise ShoalError(f"{len(failed)} not measured: " + "; ".join(text.splitlines()[0] for text in failed))
    return {"rows": raw.rows, "cost_model": network.check_cost_model(plan, raw)}


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave through all that cleans up: hosts must go, and ranks on them."""
    raise Interrupted("stopped; what was measured is kept")


def _parity(arguments: Arguments) -> dict[str, Any] | None:
    """Try all cases; returns their differences. `ShoalError` when one is not the same training."""
    if arguments.scratch is not None and is_rank():
        _as_rank(arguments.scratch, arguments.device)
        return None
    possible = sorted({case.ranks for case in parity.CASES})
    if not arguments.ranks or not set(arguments.ranks) <= set(possible):
        raise InputError(f"--ranks is {' '.join(map(str, arguments.ranks))}; accepted: {', '.join(map(str, possible))}")
    find_device(arguments.device)
    rows: list[dict[str, Any]] = []
    for size in arguments.ranks:
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            launch(size, ["bench", "parity", "--device", arguments.device, "--scratch", folder])
            rows += read_json(Path(folder) / "found.json")
    if not arguments.json:
        _show(rows)
    wrong = [f"{row['case']} on {row['ranks']}" for row in rows if not row["same"]]
    if wrong:
        raise ShoalError(f"not the same training: {', '.join(wrong)}")
    return {"tolerance": parity.TOLERANCE, "cases": rows}


def _as_rank(scratch: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.device_count() < int(os.environ["WORLD_SIZE"]):
        # NCCL refuses two ranks of one host on one GPU
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NCCL_HOSTID": os.environ["RANK"]}
    with join(device, threads=1) as world:
        cases = [case for case in parity.CASES if case.ranks == world.size]
        kinds = {case.optimizer for case in cases} if world.is_main else ()
        references = {kind: parity.reference(optimizer=kind) for kind in kinds}
        rows = []
        for number, case in enumerate(cases):
            trace = parity.trace(world, case, scratch / str(number))
            if trace is not None:
                difference = parity.Difference.between(trace, references[case.optimizer])
                rows.append({"case": case.name, "ranks": case.ranks, **asdict(difference), "same": difference.fine})
        if world.is_main:
            write_json(scratch / "found.json", rows)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("ranks", "division", "loss", "gradient norm", "weights", "", box=None)
    table.title = f"largest relative difference from plain training in fp64, {parity.STEPS} steps"
    for row in rows:
        numbers = (f"{row[key]:.1e}" for key in ("loss", "norm", "weights"))
        table.add_row(str(row["ranks"]), row["case"], *numbers, "same" if row["same"] else "[bold red]DIFFERENT[/]")
    Console(highlight=False).print(table)
