"""A pre-training run, from recipe to result, on one rank of many."""

import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from shoal.core.errors import InputError
from shoal.core.files import write_json
from shoal.core.machine import command_started, cores, cpu_name
from shoal.core.model_directory import write_model_directory
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import write_recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.shards import Corpus
from shoal.data.tokenizer import read_tokenizer
from shoal.models import hugging_face
from shoal.models.transformer import Transformer
from shoal.parallel.heartbeat import StalledError
from shoal.parallel.wire import PeerLostError, Wire
from shoal.parallel.world import join
from shoal.train.averages import evaluated_weight
from shoal.train.checkpoint import Saved
from shoal.train.loop import Parts, memory_bytes, train
from shoal.train.setup import build, peak_of_all, watch_signals
from shoal.train.telemetry import describe_metrics, read_metrics


@dataclass(frozen=True)
class Session:
    """How a run is started, which its recipe doesn't say."""

    run: RunDirectory
    resume: bool = False
    quiet: bool = False


def pretrain(recipe: Recipe, session: Session) -> dict[str, Any] | None:
    """Train, evaluate, and write model and result. Returns the result on the main rank, None on the others."""
    with join(recipe.train.device, recipe.parallel.threads, recipe.parallel.timeout) as world:
        with watch_signals() as stop_requested:
            parts = build(
                recipe,
                session.run,
                world,
                resume=Wire(world).gather_objects(session.resume)[0],  # torchrun starts ranks again; the main one knows
                quiet=session.quiet,
                stop_requested=stop_requested,
            )
            try:
                if world.is_main:  # only now is it known to fit what is there
                    write_recipe(session.run.recipe, recipe)
                evaluated = train(parts)
            except (PeerLostError, StalledError):
                parts.checkpoints.abandon()
                raise
            finally:
                parts.telemetry.close()
        memory = parts.sync.wire.gather_objects(memory_bytes(world.device))
        # again, as a machine that was busy for a moment at the start would flatter MFU for the whole run
        peak = max(parts.peak_flops, peak_of_all(parts.sync.wire, recipe.train.precision))
        return finish(parts, session.run, peak, evaluated, memory) if world.is_main else None


def finish(parts: Parts, run: RunDirectory, peak: float, evaluated: dict[str, float], memory: list[int]) -> dict[str, Any]:
    """Write model and result of a trained run; `peak`: the ranks' matrix peak, and `memory`: what each has had at most."""
    result = _result(parts, run, peak, evaluated, memory)
    _write_model(parts, run, result)
    write_json(run.result, result)
    return result


def _result(parts: Parts, run: RunDirectory, peak: float, evaluated: dict[str, float], memory: list[int]) -> dict[str, Any]:
    world = parts.sync.wire.world
    training, evaluations = read_metrics(run.metrics)
    warm = training[min(3, len(training) - 1) :]
    return {
        "run": str(run.root),
        "steps": parts.progress.step,
        "tokens": parts.progress.tokens,
        "epochs": _epochs(parts.batches.state_dict()),
        "parameters": parts.parameters,
        "loss": training[-1]["loss"],
        **evaluated,
        "best": parts.patience.state_dict() if parts.patience.best_step is not None else None,
        "stopped_early": parts.patience.over,
        "evaluations": [[line["step"], line["eval_loss"]] for line in evaluations],
        "seconds": parts.progress.seconds,
        # None when a finished run was resumed, and no step taken
        "train_seconds_from_start": _since_start(parts.telemetry.last_step_at),
        "first_step_seconds": _since_start(parts.telemetry.first_step_at),
        "tokens_per_second_median": statistics.median(line["tokens_per_second"] for line in warm),
        "mfu_median": statistics.median(line["mfu"] for line in warm) * parts.peak_flops / peak,
        "data_share_median": statistics.median(line["data_seconds"] / line["step_seconds"] for line in warm),
        "sync_share_median": statistics.median(line["sync_seconds"] / line["step_seconds"] for line in warm),
        "wire_bytes": sum(line["wire_bytes"] for line in training),
        "bits_per_parameter": statistics.mean(line.get("bits_per_parameter", 0.0) for line in training),
        "sync_seconds": sum(line["sync_seconds"] for line in training),
        "chosen": parts.auto.state,
        "stragglers": [text for line in training for text in line.get("stragglers", [])],
        "peak_memory_bytes": max(memory),
        "matrix_peak_flops": peak,
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "machine": {"cpu": cpu_name(), "cores": cores(), "torch": torch.__version__, "device": str(world.device)},
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "shoal": version("shoal"),
    }


def _epochs(state: dict[str, Any]) -> float:
    """How many times the training split has been read."""
    return state["position"] / state["samples"]


def _since_start(moment: float) -> float | None:
    return moment - command_started() if moment else None


def _write_model(parts: Parts, run: RunDirectory, result: dict[str, Any]) -> None:
    corpus = Corpus.open(Path(parts.recipe.corpus_directory))
    try:
        config = hugging_face.config_to_hugging_face(parts.model.config, corpus.end_of_text)
    except ValueError as error:
        raise InputError(f"the model can't be written in the Hugging Face layout: {error}") from None
    if parts.recipe.task == "infill":
        config["infill_layout"] = infill_layout(parts.recipe)
    weights = hugging_face.weights_to_hugging_face(_whole_model(parts))
    tokenizer = read_tokenizer(corpus.tokenizer_path)
    write_model_directory(run.model, config, weights, tokenizer.write, model_card(parts.recipe, config, result))


@torch.no_grad()
def _whole_model(parts: Parts) -> Transformer:
    """What was evaluated last, put together from the checkpoint to which each rank has written what it holds."""
    best, found = parts.patience.best_step, parts.checkpoints.newest()
    assert found is not None
    saved = Saved.open(found[0] if best is None else parts.checkpoints.at(best))
    model = Transformer(parts.model.config).materialise()
    for name, parameter in model.named_parameters():
        parameter.copy_(evaluated_weight(saved, name))
    return model


def infill_layout(recipe: Recipe) -> Literal["prefix first", "suffix first", "spans"]:
    """How a model that fills in is to be asked; it stands in `config.json`."""
    if recipe.infill.form == "spans":
        return "spans"
    return "suffix first" if recipe.infill.suffix_first == 1 else "prefix first"


_USES = {
    "causal": ("text-generation", "AutoModelForCausalLM", '--prompt "…"', "it continues text in its manner"),
    "masked": ("fill-mask", "AutoModelForMaskedLM", '--prompt "… [MASK] …"', "it finds words that are masked in such text"),
    "infill": ("text-generation", "AutoModelForCausalLM", '--prompt "… [MASK] …"', "it fills blanks in such text"),
}
"""A task's pipeline on the hub, its class, how to ask the model, and what it does."""


def model_card(recipe: Recipe, config: dict[str, Any], result: dict[str, Any]) -> str:
    """README.md of the model's folder, with the hub's metadata on top."""
    pipeline, loader, asking, does = _USES[recipe.task]
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags: [shoal]
---
# {recipe.name}

A language model of {result["parameters"]:,} parameters ({config["architectures"][0]}), trained from scratch with Shoal.

| | |
| --- | --- |
| training text | {", ".join(recipe.data.sources)} |
| tokens seen | {result["tokens"]:,} ({result["epochs"]:.2f} epochs) |
| held-out loss | {result["eval_loss"]:.4f} nats a target{describe_metrics(result, digits=4)} |
| context | {_context(config)} tokens |
| training | {result["steps"]:,} steps in {result["seconds"]:.0f} s{_which(recipe, result)} |
| machine | {result["world_size"]} rank(s) × {result["threads"]} thread(s), {result["machine"]["cpu"]} |

```python
from transformers import {loader}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = {loader}.from_pretrained("PATH")
```

or `shoal generate PATH {asking}`. The model learned from this text alone: {does}, and knows nothing else.
"""


def _which(recipe: Recipe, result: dict[str, Any]) -> str:
    """Which of a run's weights these are, where they are not the last."""
    best = f"; the best, of step {result['best']['best_step']:,}" if result["best"] else ""
    return best + (f"; a moving average of the weights ({recipe.regular.ema})" if recipe.regular.ema else "")


def _context(config: dict[str, Any]) -> int:
    """Longest sequence, under whichever name the family uses."""
    return config.get("n_positions") or config["max_position_embeddings"]
