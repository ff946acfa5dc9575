"""Folders that look like runs, written in no time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Records = Sequence[Mapping[str, Any]]


def step(number: int, **figures: Any) -> dict[str, Any]:
    """A training step's record."""
    return {
        "step": number,
        "tokens": 64 * number,
        "loss": 1 + 1 / number,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 640.0,
        "mfu": 0.5,
        "step_seconds": 0.1,
        "data_seconds": 0.01,
        "sync_seconds": 0.02,
        "wire_bytes": 1000,
        "memory_bytes": 10**8,
    } | figures


def evaluation(number: int, **figures: Any) -> dict[str, Any]:
    """An evaluation's record."""
    return {"step": number, "tokens": 64 * number, "eval_loss": 1.5 + 1 / number, "eval_seconds": 1.0} | figures


def text_of(records: Records) -> str:
    """As `metrics.jsonl` has them."""
    return "".join(json.dumps(record) + "\n" for record in records)


def write_run(
    folder: Path,
    records: Records,
    *,
    recipe: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    saved: int | None = None,
    ranks: int = 1,
) -> Path:
    """A run's folder; `saved`: the step of its newest checkpoint."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(text_of(records))
    tree = {"name": folder.name, "task": "causal", "train": {"steps": 100, "global_batch": 4}} | dict(recipe or {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if saved is not None:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "latest").write_text(f"step-{saved:08}\n")
        entries = [{"ranks": [{"count": 1, "digest": 1}] * ranks}]
        (folder / "ledger.json").write_text(json.dumps({"samples": 400, "entries": entries}))
    return folder
