"""Training speed: Shoal next to Hugging Face's Trainer, DeepSpeed and a plain PyTorch loop, on one model and corpus.

Everyone trains the same GPT-2 shape in fp32 with the same batch and AdamW, in a process of its own, with an own folder
for what the compiler keeps: empty in the first round (cold), as it was left in later ones (cached). Speeds are those
of the median step after the warm-up, memory the peak of a process, and time to the first step counts from its start.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tyro

from report import (
    ROOT,
    SCRATCH,
    Result,
    Rounds,
    comparable,
    first_step_cells,
    fresh_directory,
    median,
    median_speed,
    peer_command,
    publish,
    read_steps,
    run_json,
    shoal_command,
    shown,
    speed_cells,
    take_turns,
)

PEERS = {
    "trainer": ("hugging_face_trainer.py",),
    "trainer, compiled": ("hugging_face_trainer.py", "--compile"),
    "deepspeed zero-0": ("deepspeed_zero.py",),
    "plain loop": ("plain_loop.py",),
    "plain loop, compiled": ("plain_loop.py", "--compile"),
}
WHOLE_MACHINE, ONE_THREAD, TWO_RANKS = "shoal, 2 threads", "shoal, 1 thread", "shoal, 2 ranks × 1 thread"
ONE_OF_TWO = "shoal, 1 thread, 8 sequences a step"
SHOAL = {  # workers, threads a worker, sequences a step
    WHOLE_MACHINE: (1, 2, 16),
    ONE_THREAD: (1, 1, 16),
    ONE_OF_TWO: (1, 1, 8),
    TWO_RANKS: (2, 1, 16),
}
APART = "shoal, 2 processes that share nothing"
"""As two ranks, but each by itself, on a core of its own, at the same time: what the machine leaves to any two."""
COLUMNS = ["", "tokens/s", "lowest–highest", "of best peer", "MFU", "first step, cold", "cached", "memory"]


def peer_contender(name: str, corpus: Path, steps: int, warmup: int) -> Callable[[int], Result]:
    script, *options = PEERS[name]
    command = peer_command(script, "--corpus", corpus, "--steps", steps, "--warmup", warmup, "--threads", 2, *options)
    return lambda round_number: run_json(command, **compiler_cache(name, round_number))


def shoal_contender(
    name: str, recipe: Path, corpus: Path, steps: int, warmup: int, core: int | None = None
) -> Callable[[int], Result]:
    """`core`: the one that it may use (None: all)."""
    workers, threads, batch = SHOAL[name]
    stamp = time.strftime("%Y%m%d-%H%M%S") + ("" if core is None else f"-core{core}")
    pinned = [] if core is None else ["taskset", "-c", str(core)]

    def measure(round_number: int) -> Result:
        command = shoal_command(
            *("pretrain", recipe, "--json", "--workers", workers, "--parallel.threads", threads),
            *("--train.steps", steps, "--train.global_batch", batch, "--data.directory", corpus),
            *("--name", f"bench-{stamp}-{workers}x{threads}x{batch}-{round_number + 1}"),
        )
        result = run_json([*pinned, *command], **compiler_cache(f"{name}{core or ''}", round_number))
        measured = read_steps(result)
        told = {"tokens_per_second": median_speed(measured, warmup)}
        return result | told | {"step_seconds": [step["step_seconds"] for step in measured]}

    return measure


def apart_contender(recipe: Path, corpus: Path, steps: int, warmup: int) -> Callable[[int], Result]:
    each = [shoal_contender(ONE_OF_TWO, recipe, corpus, steps, warmup, core) for core in (0, 1)]

    def measure(round_number: int) -> Result:
        with ThreadPoolExecutor(len(each)) as pool:
            results = list(pool.map(lambda run: run(round_number), each))
        together = {key: sum(result[key] for result in results) for key in ("tokens_per_second", "peak_memory_bytes")}
        return max(results, key=lambda result: result["first_step_seconds"]) | together

    return measure


def compiler_cache(name: str, round_number: int) -> dict[str, str]:
    """The environment that gives a contender its own compiler cache, emptied before the first round."""
    directory = SCRATCH / "compiler" / name.replace(" ", "-").replace(",", "").replace("×", "x")
    if round_number == 0:
        fresh_directory(directory)
    return {"TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"), "XDG_CACHE_HOME": str(directory)}


def summary_row(name: str, rounds: Rounds) -> list[str]:
    return [
        *speed_cells(name, rounds, PEERS),
        shown(utilization(name, rounds), "{:.1%}"),
        *first_step_cells(rounds[name]),
        shown(median(rounds[name], "peak_memory_bytes") / 1e6, "{:,.0f} MB"),
    ]


def utilization(name: str, rounds: Rounds) -> float:
    """MFU: Shoal's own, and the peers' by the peak that Shoal measured with as many threads (the model is the same)."""
    if name in (*SHOAL, APART):
        return median(rounds[name], "mfu_median")
    if WHOLE_MACHINE not in rounds:
        return math.nan
    own_speed = median(rounds[WHOLE_MACHINE], "tokens_per_second")
    return median(rounds[WHOLE_MACHINE], "mfu_median") * median(rounds[name], "tokens_per_second") / own_speed


def scaling_note(rounds: Rounds) -> list[str]:
    """Two ranks against twice one, that does the same work a step as each of them (ideal scaling) or the work of both."""
    if not {ONE_THREAD, ONE_OF_TWO, TWO_RANKS} <= rounds.keys():
        return []
    both, each, together = (median(rounds[name], "tokens_per_second") for name in (ONE_THREAD, ONE_OF_TWO, TWO_RANKS))
    notes = [
        f"Scaling: 2 ranks reach {together / (2 * each):.1%} of twice one rank's speed at the same work a rank "
        f"({ONE_OF_TWO}), {together / (2 * both):.1%} of twice one rank's at the same global batch ({ONE_THREAD})."
    ]
    if APART in rounds:
        most = median(rounds[APART], "tokens_per_second")
        notes.append(
            f"Two processes that share nothing but the machine reach {most / (2 * each):.1%} of twice one alone; two ranks "
            f"are at {together / most:.1%} of them."
        )
    return notes


def main(
    rounds: int = 3,
    steps: int = 30,
    warmup: int = 5,
    recipe: Path = ROOT / "recipes" / "gpt-bench.yaml",
    only: tuple[str, ...] = (),
) -> None:
    """Measure training speed and write bench/results/train.json and train.md.

    Args:
        rounds: How often everyone is measured; the first is the cold one.
        steps: Optimizer steps a measurement.
        warmup: First steps that do not count towards the speed.
        recipe: What Shoal trains; its model and batch must be those of the peers' defaults.
        only: Contenders to measure, by name; none: all of them.
    """
    corpus = ROOT / "data" / recipe.stem
    if unknown := set(only) - {*PEERS, *SHOAL, APART}:
        raise SystemExit(f"no contender {sorted(unknown)}; there are {[*PEERS, *SHOAL, APART]}")
    contenders = {name: peer_contender(name, corpus, steps, warmup) for name in PEERS}
    contenders |= {name: shoal_contender(name, recipe, corpus, steps, warmup) for name in SHOAL}
    contenders[APART] = apart_contender(recipe, corpus, steps, warmup)
    run_json(shoal_command("prepare", recipe, "--data.directory", corpus, "--json"))
    results = take_turns({name: contenders[name] for name in only or contenders}, rounds)
    notes = [f"Medians over {rounds} rounds of {steps} steps; cold is the first round, cached the later ones."]
    notes += ["MFU of the peers is by the peak that Shoal measured.", *scaling_note(results)]
    notes += comparable(results)
    rows = [summary_row(name, results) for name in results]
    publish("train", "Training speed, GPT-2 shape in fp32", COLUMNS, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
