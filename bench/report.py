"""How a measurement is made and kept: contenders take turns in processes of their own, and the raw numbers stay.

Rounds are interleaved (A B C A B C ...), so that a machine that slows down or warms up does so for everyone, and the
medians over rounds are what is printed. `bench/results/NAME.json` keeps every round with the machine and the command
that made it, `bench/results/NAME.md` the table.
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / ".bench"
PEERS_PYTHON = SCRATCH / "venv" / "bin" / "python"
RESULTS = ROOT / "bench" / "results"
STDERR_LINES = 20

Result = dict[str, Any]
Rounds = dict[str, list[Result]]

progress = Console(stderr=True, highlight=False)


def peer_command(script: str, *arguments: object, ranks: int = 1) -> list[str]:
    """A script of bench/peers, in the peers' own environment, on so many ranks; exits if that is missing."""
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"the peers are not installed (no {PEERS_PYTHON}): run bench/setup_peers.sh")
    launcher = rank_launcher(ranks) if ranks > 1 else []
    return [str(PEERS_PYTHON), *launcher, str(ROOT / "bench" / "peers" / script), *map(str, arguments)]


def rank_launcher(ranks: int) -> list[str]:
    """Words between the interpreter and a script that make it so many ranks."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def shoal_command(*arguments: object) -> list[str]:
    """`shoal ...` in this environment; exits if it is not installed here."""
    if importlib.util.find_spec("shoal") is None:
        raise SystemExit(f"shoal is not installed for {sys.executable}: run this with the project's .venv/bin/python")
    return [sys.executable, "-m", "shoal", *map(str, arguments)]


def run_json(command: Sequence[str], **environment: str) -> Result:
    """Runs the command at the repository's root and returns the JSON object that ends its output; exits if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    tail = "\n".join(done.stderr.splitlines()[-STDERR_LINES:])
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with exit code {done.returncode}:\n{tail}")
    try:
        # The last line that opens an object: libraries may have printed before it, and it may be indented.
        result: Result = json.JSONDecoder().raw_decode(done.stdout, done.stdout.rfind("\n{") + 1)[0]
    except json.JSONDecodeError:
        raise SystemExit(f"{' '.join(command)}\nprinted no JSON object:\n{done.stdout[-1000:]}\n{tail}") from None
    return result | {"process_seconds": seconds}


def take_turns(contenders: Mapping[str, Callable[[int], Result]], rounds: int) -> Rounds:
    """Every contender's result of every round; a contender is called with the round's number, from 0."""
    results: Rounds = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            started = time.perf_counter()
            with progress.status(f"round {number + 1} of {rounds}: {name}"):
                results[name].append(measure(number))
            progress.print(f"round {number + 1} of {rounds}: {name}, {time.perf_counter() - started:.0f} s")
    return results


def median(results: Sequence[Result], key: str) -> float:
    """The median of a key over rounds; not a number if a round lacks it or there are none."""
    values = [math.nan if result.get(key) is None else float(result[key]) for result in results]
    return math.nan if not values or any(map(math.isnan, values)) else statistics.median(values)


def read_steps(result: Result) -> list[dict[str, Any]]:
    """What a run of Shoal's tells of each step that it trained."""
    lines = (ROOT / result["run"] / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "tokens_per_second" in line]


def median_speed(steps: Sequence[Mapping[str, Any]], warmup: int) -> float:
    """Tokens/s of the median step after the warm-up: the peers' own rule, so that nobody's warm-up counts."""
    return statistics.median(step["tokens_per_second"] for step in steps[warmup:])


def speed_cells(name: str, rounds: Rounds, peers: Iterable[str]) -> list[str]:
    """Of a contender its name, tokens/s, the lowest and the highest, and how many times the best peer's that is."""
    speed, speeds = median(rounds[name], "tokens_per_second"), [result["tokens_per_second"] for result in rounds[name]]
    best = max((median(rounds[peer], "tokens_per_second") for peer in peers if peer in rounds), default=math.nan)
    return [name, shown(speed), f"{min(speeds):,.0f}–{max(speeds):,.0f}", shown(speed / best, "{:.2f} ×")]


def first_step_cells(results: Sequence[Result]) -> list[str]:
    """Time to the first step of the first round, and of later ones."""
    later = median(results[1:], "first_step_seconds")
    return [shown(results[0]["first_step_seconds"], "{:.1f} s"), shown(later, "{:.1f} s")]


def comparable(rounds: Rounds) -> list[str]:
    """A note where contenders' models are not of one size."""
    sizes = {name: ran[0]["parameters"] for name, ran in rounds.items()}
    return [f"NOT COMPARABLE: the models differ in parameters: {sizes}."] if len(set(sizes.values())) > 1 else []


def fresh_directory(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def shown(value: float, template: str = "{:,.0f}") -> str:
    return "–" if math.isnan(value) else template.format(value)


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on; the load average tells whether anyone else was using the machine."""
    cpu = Path("/proc/cpuinfo").read_text()
    processor = re.search(r"model name\s*:\s*(.+)", cpu)
    vectors = next((name for name in ("AVX-512", "AVX2") if name.lower().replace("-", "") in cpu), "")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": (processor[1] if processor else platform.machine()) + (f" with {vectors}" if vectors else ""),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


def publish(
    name: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    rounds: Rounds,
    script: str = "",
) -> None:
    """Prints the table and its notes, and writes bench/results/NAME.json and NAME.md; made by SCRIPT.py, or NAME.py."""
    table = Table(*columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    # Rich takes a pipe for 80 columns wide.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)

    machine = describe_machine()
    # Where things lie on this machine is nobody's business.
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = shlex.join(["python", f"bench/{script or name}.py", *arguments])
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes)]
    lines += [f"- {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {machine['date']}"]
    lines += [f"- Raw numbers: `{name}.json`. Made by `{command}`."]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = json.dumps({"command": command, "machine": machine, "rounds": rounds}, indent=1).replace(f"{ROOT}/", "")
    (RESULTS / f"{name}.json").write_text(record + "\n", encoding="utf-8")
