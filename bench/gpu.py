"""Training speed on a GPU: Shoal next to a plain compiled loop, as nanoGPT's, and Hugging Face's Trainer.

Everyone trains GPT-2's 124M shape in bf16 (autocast; weights and AdamW in fp32), with the same windows of the same corpus,
one batch a step, in a process of its own. Compiled code of one round serves the next.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

from report import (
    ROOT,
    Result,
    Rounds,
    comparable,
    first_step_cells,
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
from shoal.core.machine import cores
from train import compiler_cache

SHOAL, PLAIN = "shoal", "plain loop, compiled"
PEERS = {
    PLAIN: ("plain_loop.py", "--compile"),
    "trainer, compiled": ("hugging_face_trainer.py", "--compile"),
    "trainer": ("hugging_face_trainer.py",),
}
COLUMNS = ["", "tokens/s", "lowest–highest", "of best peer", "MFU", "first step, cold", "cached", "memory"]
SHAPE = ("--layers", 12, "--dim", 768, "--heads", 12, "--vocabulary", 50304, "--context", 1024)


def peer_contender(name: str, corpus: Path, batch: int, steps: int, warmup: int) -> Callable[[int], Result]:
    script, *options = PEERS[name]
    command = peer_command(
        *(script, "--corpus", corpus, *SHAPE, "--device", "cuda", "--precision", "bf16", "--threads", cores()),
        *("--batch", batch, "--steps", steps, "--warmup", warmup, *options),
    )
    return lambda round_number: run_json(command, CUDA_VISIBLE_DEVICES="0", **compiler_cache(name, round_number))


def shoal_contender(recipe: Path, corpus: Path, batch: int, steps: int, warmup: int) -> Callable[[int], Result]:
    stamp = time.strftime("%Y%m%d-%H%M%S")

    def measure(round_number: int) -> Result:
        command = shoal_command(
            *("pretrain", recipe, "--json", "--train.device", "cuda", "--train.steps", steps, "--train.tokens", 0),
            *("--train.global_batch", batch, "--train.micro_batch", batch, "--data.directory", corpus),
            *("--evaluation.every", 0, "--evaluation.sequences", batch, "--checkpoint.every", 0),
            *("--name", f"bench-gpu-{stamp}-{round_number + 1}"),
        )
        result = run_json(command, **compiler_cache(SHOAL, round_number))
        measured = read_steps(result)
        memory = max(step["memory_bytes"] for step in measured)
        return result | {"tokens_per_second": median_speed(measured, warmup), "peak_memory_bytes": memory}

    return measure


def summary_row(name: str, rounds: Rounds) -> list[str]:
    results = rounds[name]
    own = rounds.get(SHOAL)
    a_token = median(own, "mfu_median") / median(own, "tokens_per_second") if own else math.nan
    return [
        *speed_cells(name, rounds, PEERS),
        shown(a_token * median(results, "tokens_per_second"), "{:.1%}"),
        *first_step_cells(results),
        shown(median(results, "peak_memory_bytes") / 1e9, "{:.1f} GB"),
    ]


def main(
    rounds: int = 2,
    steps: int = 40,
    warmup: int = 10,
    batch: int = 32,
    recipe: Path = ROOT / "recipes" / "gpt2-small.yaml",
    only: tuple[str, ...] = (),
) -> None:
    """Measure training speed on a GPU and write bench/results/gpu.json and gpu.md.

    Args:
        rounds: How often everyone is measured; the first is the cold one.
        steps: Optimizer steps a measurement.
        warmup: First steps that do not count towards the speed.
        batch: Sequences a step.
        recipe: What Shoal trains; its model must be the peers'.
        only: Contenders to measure, by name; none: all of them.
    """
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here: `shoal doctor` tells more")
    corpus = ROOT / "data" / recipe.stem
    if unknown := set(only) - {SHOAL, *PEERS}:
        raise SystemExit(f"no contender {sorted(unknown)}; there are {[SHOAL, *PEERS]}")
    run_json(shoal_command("prepare", recipe, "--data.directory", corpus, "--json"))
    contenders = {SHOAL: shoal_contender(recipe, corpus, batch, steps, warmup)}
    contenders |= {name: peer_contender(name, corpus, batch, steps, warmup) for name in PEERS}
    results = take_turns({name: contenders[name] for name in only or contenders}, rounds)
    notes = [
        f"Medians over {rounds} round{'s' * (rounds > 1)} of {steps} steps of {batch} × 1,024 tokens; cold is the first, "
        "cached the later rounds. Memory is that of tensors on the GPU.",
        f"{torch.cuda.get_device_name()}; MFU by the matrix peak that Shoal measured there in bf16.",
    ]
    notes += comparable(results)
    publish(
        "gpu",
        "Training speed on a GPU, GPT-2 124M in bf16",
        COLUMNS,
        [summary_row(n, results) for n in results],
        notes,
        results,
    )


if __name__ == "__main__":
    tyro.cli(main)
