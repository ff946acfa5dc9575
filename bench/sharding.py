"""Ways to divide the model: what each costs in speed, next to DeepSpeed's, and what memory it saves, next to the formula.

Speed: two ranks of one thread over loopback, the same model, corpus, global batch and AdamW for everyone, interleaved.
Each is compared with its own replicate mode (DeepSpeed's stage 0). Memory: one real step on 2 and 4 ranks, beside the ZeRO
paper's formula (16 bytes a parameter, divided accordingly) and what `pretrain --dry-run --world` had foretold.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import tyro

from report import (
    ROOT,
    SCRATCH,
    Result,
    Rounds,
    median,
    median_speed,
    peer_command,
    publish,
    rank_launcher,
    read_steps,
    run_json,
    shoal_command,
    shown,
    take_turns,
)
from shoal.core.recipe_file import read_recipe
from shoal.data.shards import Corpus
from shoal.train.layout import find_layout
from shoal.train.sizes import estimate, transformer_config

KINDS = ("replicate", "zero1", "zero2", "zero3")
STAGES = {"deepspeed zero-0": 0, "deepspeed zero-1": 1, "deepspeed zero-2": 2, "deepspeed zero-3": 3}
COLUMNS = ["", "tokens/s", "lowest–highest", "of its replicate", "waiting for others", "sent a step", "memory"]
STATE_COLUMNS = ["", "ranks", "formula", "foretold", "measured", "sent: foretold", "measured", "peak resident"]


def peer_contender(stage: int, corpus: Path, steps: int, warmup: int) -> Callable[[int], Result]:
    options = ("--corpus", corpus, "--steps", steps, "--warmup", warmup, "--threads", 1, "--stage", stage)
    return lambda round_number: run_json(peer_command("deepspeed_zero.py", *options, ranks=2), OMP_NUM_THREADS="1")


def shoal_contender(kind: str, recipe: Path, corpus: Path, steps: int, warmup: int) -> Callable[[int], Result]:
    stamp = time.strftime("%Y%m%d-%H%M%S")

    def measure(round_number: int) -> Result:
        command = shoal_command(
            *("pretrain", recipe, "--json", "--workers", 2, "--parallel.threads", 1, "--parallel.shard", kind),
            *("--parallel.sync", "every"),  # what is compared is how they travel
            *("--train.steps", steps, "--data.directory", corpus, "--name", f"bench-{stamp}-{kind}-{round_number + 1}"),
        )
        result = run_json(command, XDG_CACHE_HOME=str(SCRATCH / "compiler" / "sharding"))
        measured = read_steps(result)
        return result | {"tokens_per_second": median_speed(measured, warmup), "step_bytes": measured[-1]["wire_bytes"]}

    return measure


def summary_row(name: str, rounds: Rounds) -> list[str]:
    results = rounds[name]
    own = rounds["replicate" if name in KINDS else "deepspeed zero-0"]
    speeds = [result["tokens_per_second"] for result in results]
    return [
        name,
        shown(median(results, "tokens_per_second")),
        f"{min(speeds):,.0f}–{max(speeds):,.0f}",
        shown(median(results, "tokens_per_second") / median(own, "tokens_per_second"), "{:.1%}"),
        shown(median(results, "sync_share_median"), "{:.1%}"),
        shown(median(results, "step_bytes") / 1e6, "{:.1f} MB"),
        shown(median(results, "peak_memory_bytes") / 1e6, "{:,.0f} MB"),
    ]


def states(recipe: Path, corpus: Path) -> tuple[list[list[str]], Rounds]:
    vocabulary = Corpus.open(corpus).vocabulary
    rows, raw = [], {}
    cases = [(kind, ranks, 1) for ranks in (2, 4) for kind in KINDS] + [("replicate", 2, 2), ("zero3", 4, 2)]
    for kind, ranks, tensor in cases:
        keys = ["--data.directory", str(corpus), "--parallel.shard", kind, "--parallel.tensor", str(tensor)]
        chosen = read_recipe(recipe, keys)
        foretold = find_layout(chosen, transformer_config(chosen, vocabulary), ranks)
        formula = estimate(chosen, vocabulary, ranks)["states_bytes"]
        script = [str(ROOT / "bench" / "states.py"), "--recipe", str(recipe), "--corpus", str(corpus)]
        command = [sys.executable, *rank_launcher(ranks), *script, "--shard", kind, "--tensor", str(tensor)]
        found = run_json(command, OMP_NUM_THREADS="1")
        name = kind if tensor == 1 else f"{kind}, tensor {tensor}"
        held, sent = sum(found["held"].values()), sum(found["sent"].values())
        told = {"foretold": foretold.held.total, "formula": formula, "sent_foretold": foretold.sent}
        raw[f"{name} on {ranks}"] = [found | told]
        sizes = (formula, foretold.held.total, held, sum(foretold.sent.values()), sent)
        shown_sizes = [f"{size / 1e6:,.2f} MB" for size in sizes]
        rows.append([name, str(ranks), *shown_sizes, f"{found['peak_memory_bytes'] / 1e6:,.0f} MB"])
    return rows, raw


def main(
    rounds: int = 3,
    steps: int = 15,
    warmup: int = 4,
    recipe: Path = ROOT / "recipes" / "gpt-bench.yaml",
    only_states: bool = False,
) -> None:
    """Measure speed and memory of every division, and write bench/results/sharding.* and states.*.

    Args:
        rounds: How often everyone is measured.
        steps: Optimizer steps a measurement.
        warmup: First steps that do not count towards the speed.
        recipe: What Shoal trains; its model and batch must be those of the peers' defaults.
        only_states: Leave the speed out.
    """
    corpus = ROOT / "data" / recipe.stem
    run_json(shoal_command("prepare", recipe, "--data.directory", corpus, "--json"))
    rows, raw = states(recipe, corpus)
    notes = [
        "Model states when the optimizer steps, rank 0; the last column is the whole process, Python and torch included."
    ]
    publish("states", "Model states a rank, GPT-2 shape in fp32", STATE_COLUMNS, rows, notes, raw, "sharding")
    if only_states:
        return
    contenders = {kind: shoal_contender(kind, recipe, corpus, steps, warmup) for kind in KINDS}
    contenders |= {name: peer_contender(stage, corpus, steps, warmup) for name, stage in STAGES.items()}
    results = take_turns(contenders, rounds)
    notes = [f"Two ranks of one thread; medians over {rounds} rounds of {steps} steps, the first {warmup} not counted."]
    rows = [summary_row(name, results) for name in results]
    publish("sharding", "Ways to divide the model: speed on two ranks, GPT-2 shape in fp32", COLUMNS, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
