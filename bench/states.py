"""What a rank really holds and sends: one step on real ranks, as bench/sharding.py sets it beside formula and forecast.

Run by torchrun; rank 0 prints one JSON object.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from shoal.core.recipe_file import read_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import join
from shoal.train.layout import one_step
from shoal.train.loop import empty_totals, memory_bytes
from shoal.train.setup import build


def main(
    recipe: Path, corpus: Path, shard: str = "replicate", tensor: int = 1, steps: int = 2, keys: tuple[str, ...] = ()
) -> None:
    """Measure one rank of those that torchrun has started.

    Args:
        recipe: What to train.
        corpus: Its corpus.
        shard: `parallel.shard`.
        tensor: `parallel.tensor`.
        steps: Steps; the last one counts.
        keys: Other keys of the recipe, as `model.context=256`.
    """
    given = ["--data.directory", str(corpus), "--parallel.shard", shard, "--parallel.tensor", str(tensor)]
    chosen = read_recipe(
        recipe, [*given, "--parallel.sync", "every", "--train.compile", "off", *(f"--{key}" for key in keys)]
    )
    with join("cpu", threads=1) as world, TemporaryDirectory() as folder:
        parts, _ = build(chosen, RunDirectory(Path(folder)), world, quiet=True)
        wire = parts.sync.wire
        for _ in range(steps):
            wire.sent.clear()
            held = one_step(chosen, parts.model, parts.sync, parts.optimizer)
            parts.sync.sum_totals(empty_totals(world, 1))
        sent = dict(wire.sent)
        peaks = wire.gather_objects(memory_bytes(world.device))
        parts.telemetry.close()
        if world.is_main:
            print(json.dumps({"held": asdict(held), "sent": sent, "peak_memory_bytes": max(peaks)}))


if __name__ == "__main__":
    tyro.cli(main)
