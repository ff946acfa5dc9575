"""Time to quality: seconds until tinyshakespeare's validation loss is 1.88, nanoGPT's documented CPU recipe or Shoal's.

nanoGPT runs its whole recipe and is evaluated every so often; its time is that of the first evaluation at or below the
target. Shoal trains to the fixed budget of its recipe, which is chosen in advance, and is evaluated once: its time
counts if the loss is at or below the target. Both are told on the whole validation split, from the start of the
process, compilation included, evaluation not. Shoal runs twice a round: with an empty compiler cache, then with a full
one.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import tyro

from report import (
    ROOT,
    SCRATCH,
    Result,
    fresh_directory,
    median,
    peer_command,
    publish,
    run_json,
    shoal_command,
    shown,
    take_turns,
)

TARGET_LOSS = 1.88
PEER, COLD, CACHED = "nanogpt", "shoal, compiler cache empty", "shoal, compiler cache full"
COLUMNS = ["", f"seconds to {TARGET_LOSS}", "fastest–slowest", "times nanogpt's speed", "loss then", "memory"]


def nanogpt_contender(text: Path, evaluate_every: int) -> Callable[[int], Result]:
    command = peer_command("nanogpt_shakespeare.py", "--text", text, "--evaluate-every", evaluate_every)

    def measure(round_number: int) -> Result:
        result = run_json([*command, "--seed", str(round_number + 1)])
        reached = [(seconds, loss) for seconds, _, loss in result["curve"] if loss <= TARGET_LOSS]
        # a recipe that ends above the target has taken its whole time, and would take more
        seconds, loss = reached[0] if reached else (result["curve"][-1][0], result["final_val_loss"])
        return result | {"seconds_to_target": seconds, "loss_then": loss}

    return measure


def shoal_contender(recipe: Path, corpus: Path, cold: bool) -> Callable[[int], Result]:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    cache = SCRATCH / "compiler" / "quality"  # shared: the cold run of a round fills it for the other one

    def measure(round_number: int) -> Result:
        if cold:
            fresh_directory(cache)
        name = f"bench-quality-{stamp}-{'cold' if cold else 'cached'}-{round_number + 1}"
        overrides = ("--name", name, "--seed", round_number + 1, "--data.directory", corpus)
        result = run_json(shoal_command("pretrain", recipe, "--json", *overrides), XDG_CACHE_HOME=str(cache))
        reached = result["eval_loss"] <= TARGET_LOSS
        seconds = result["train_seconds_from_start"] if reached else None
        return result | {"seconds_to_target": seconds, "loss_then": result["eval_loss"]}

    return measure


def summary_row(name: str, results: list[Result], peer_seconds: float) -> list[str]:
    seconds = median(results, "seconds_to_target")
    times = [result["seconds_to_target"] for result in results]
    return [
        name,
        shown(seconds, "{:.1f} s"),
        "–" if None in times else f"{min(times):.1f}–{max(times):.1f} s",
        shown(peer_seconds / seconds, "{:.2f} ×"),
        shown(median(results, "loss_then"), "{:.3f}"),
        shown(median(results, "peak_memory_bytes") / 1e6, "{:,.0f} MB"),
    ]


def main(
    text: Path | None = None,
    rounds: int = 3,
    evaluate_every: int = 100,
    recipe: Path = ROOT / "recipes" / "gpt-shakespeare.yaml",
) -> None:
    """Measure the time to a validation loss of 1.88 and write bench/results/quality.json and quality.md.

    Args:
        text: tinyshakespeare, one file of text; none: what SHOAL_TINYSHAKESPEARE names.
        rounds: How often both are measured, each time with another seed.
        evaluate_every: nanoGPT's steps between evaluations; fewer find the moment more exactly and take longer.
        recipe: What Shoal trains.
    """
    if text is None:
        if "SHOAL_TINYSHAKESPEARE" not in os.environ:
            raise SystemExit("give tinyshakespeare's text by --text FILE or SHOAL_TINYSHAKESPEARE")
        text = Path(os.environ["SHOAL_TINYSHAKESPEARE"])
    if not text.is_file():
        raise SystemExit(f"no file {text}")
    text = text.resolve()
    corpus = ROOT / "data" / recipe.stem
    contenders = {
        PEER: nanogpt_contender(text, evaluate_every),
        COLD: shoal_contender(recipe, corpus, cold=True),
        CACHED: shoal_contender(recipe, corpus, cold=False),
    }
    run_json(shoal_command("prepare", recipe, "--json", "--data.sources", f'["{text}"]', "--data.directory", corpus))
    results = take_turns(contenders, rounds)
    peer_seconds = median(results[PEER], "seconds_to_target")
    notes = [
        f"Medians over {rounds} rounds, each with its own seed; a dash: a round did not reach the target.",
        f"nanoGPT is evaluated every {evaluate_every} steps, off the clock; the first loss that is low enough counts, or "
        "the end of its recipe where none is.",
    ]
    rows = [summary_row(name, ran, peer_seconds) for name, ran in results.items()]
    publish("quality", f"Time to validation loss {TARGET_LOSS} on tinyshakespeare", COLUMNS, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
