"""From a recipe to the objects that the loop works with. All choosing happens here, once."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from shoal.core import recipe as schema
from shoal.core.errors import InputError, RecipeError
from shoal.core.machine import cpp_compiler
from shoal.core.model_directory import read_model_directory
from shoal.core.native.attention import available, causal_attention
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.core.seeds import generator
from shoal.data.batches import TrainingBatches
from shoal.data.shards import Corpus
from shoal.models import hugging_face
from shoal.models.presets import make_config
from shoal.models.transformer import Attention, Transformer, TransformerConfig
from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.launch import ERROR_FOLDER
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import TASKS
from shoal.train.checkpoint import Checkpoints, Snapshot
from shoal.train.evaluation import Evaluator
from shoal.train.loop import Parts, restore
from shoal.train.optimizers import build_optimizer
from shoal.train.schedule import Budget
from shoal.train.telemetry import Silence, Telemetry

SYNCS: dict[str, Callable[[Wire, schema.Parallel], Sync]] = {
    "all_reduce": lambda wire, settings: AllReduce(wire, int(settings.bucket_megabytes * 2**20)),
}
"""Name to strategy, for the recipe's `parallel.sync`."""


def build(
    recipe: Recipe,
    run: RunDirectory,
    world: World,
    *,
    resume: bool = False,
    quiet: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Parts:
    """Everything that `train.loop` needs, on this rank. Raises `InputError` for what can't work."""
    corpus = Corpus.open(Path(recipe.corpus_directory))
    wire = Wire(world)
    _check_equal(wire, recipe, corpus)
    model = build_model(recipe, corpus.vocabulary, world.device)
    config = model.config
    if config.vocabulary < corpus.vocabulary:
        raise InputError(
            f"{recipe.corpus_directory} has a vocabulary of {corpus.vocabulary}, the model only {config.vocabulary}; "
            "prepare the corpus with the model's tokenizer (--tokenizer.path)"
        )
    use_native_attention(model, recipe.train.precision)
    compiled = compile_blocks(model, recipe.train.compile)
    sync = SYNCS[recipe.parallel.sync](wire, recipe.parallel)
    sync.attach(model)
    train = recipe.train
    share = -(-train.global_batch // world.size)
    batches = TrainingBatches(
        corpus.split("train"), config.context, train.global_batch, train.micro_batch, recipe.seed,
        world.rank, world.size, recipe.data.partition,
    )  # fmt: skip
    task, precision = TASKS[recipe.task](), make_precision(train.precision, world.device)
    budget = Budget.of(train)
    checkpoints = Checkpoints(run.checkpoints, recipe.checkpoint.keep)
    saved, notes = _find_checkpoint(checkpoints) if resume else (None, [])
    telemetry: Telemetry | Silence = Silence()
    if world.is_main:
        expected = budget.expected_steps(train.global_batch * config.context)
        telemetry = Telemetry(run, saved.step if saved else None, expected, quiet)
    evaluate = Evaluator(
        task, corpus.split("held_out"), config.context, min(share, train.micro_batch or share), wire, precision,
        recipe.evaluation.sequences,
        recipe.evaluation.final_sequences,
    )  # fmt: skip
    peak_flops = wire.sum(torch.tensor(matrix_peak(world.device, train.precision), device=world.device)).item()
    parts = Parts(
        recipe, model, task, batches, build_optimizer(model, recipe.optimizer), sync, budget, evaluate, checkpoints,
        telemetry, precision, peak_flops, stop_requested,
    )  # fmt: skip
    if saved is not None:
        try:
            restore(parts, saved)
        except (RuntimeError, KeyError) as error:
            raise InputError(f"{run.checkpoints}: the checkpoint doesn't fit this recipe's model: {error}") from None
        notes.append(f"going on from step {saved.step}")
    threads = torch.get_num_threads()
    notes.append(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {world.size} rank"
        f"{'s' if world.size > 1 else ''} × {threads} thread{'s' if threads > 1 else ''}, {compiled}; "
        f"matrix peak {peak_flops / 1e9:,.0f} GFLOP/s"
    )
    for note in notes:
        telemetry.note(note)
    return parts


def make_transformer_config(settings: schema.Model, vocabulary: int) -> TransformerConfig:
    """The recipe's shape; `RecipeError` when it doesn't fit together."""
    try:
        return make_config(
            settings.preset, vocabulary=vocabulary, context=settings.context, layers=settings.layers, dim=settings.dim,
            heads=settings.heads, kv_heads=settings.kv_heads, head_dim=settings.head_dim, hidden=settings.hidden,
            activation=settings.activation, qk_norm=settings.qk_norm, tied=settings.tied,
            rope_theta=settings.rope_theta, dropout=settings.dropout,
        )  # fmt: skip
    except ValueError as error:
        raise RecipeError(f"'model': {error}") from None


def build_model(recipe: Recipe, vocabulary: int, device: torch.device) -> Transformer:
    """Random weights from the recipe's seed, or those of `model.init_from`."""
    settings = recipe.model
    if settings.init_from:
        try:
            return hugging_face.build(*read_model_directory(Path(settings.init_from))).to(device)
        except ValueError as error:
            raise InputError(f"{settings.init_from}: {error}") from None
    model = Transformer(make_transformer_config(settings, vocabulary)).materialise()
    random = generator(recipe.seed, "weights")
    model.initialise(random, settings.init_std or 0.02, settings.embedding_std, bool(settings.zero_init))
    return model.to(device)


def use_native_attention(model: Transformer, precision: str) -> None:
    """Give the blocks our own kernel where it serves: in fp32 on a CPU, with a compiler to build it."""
    if model.head_weight.device.type == "cpu" and precision == "fp32" and available():
        for module in model.modules():
            if isinstance(module, Attention):
                module.causal = causal_attention


def compile_blocks(model: Transformer, choice: str) -> str:
    """Compile every block with one graph, where wanted and possible; says in a word what was done.

    Blocks, not the whole model: one block's code serves all, so compiling takes a sixth of the time at six layers.
    """
    device = model.head_weight.device
    if choice == "off":
        return "eager"
    if device.type == "cpu" and cpp_compiler() is None:
        if choice == "on":
            raise InputError("train.compile is 'on', but there is no C++ compiler (g++ or clang++) on this machine")
        return "eager (no C++ compiler found)"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "shoal" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    for block in model.blocks:
        block.compile()
    return "compiled by block"


def make_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Autocast for bf16, nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def matrix_peak(device: torch.device, precision: str = "fp32", seconds: float = 0.4) -> float:
    """FLOP/s of a large matrix product here, now, with this process's threads: what MFU is measured against.

    The fastest of the products that fit into `seconds`: whatever else the machine does would lower it, and flatter MFU.
    """
    size = 8192 if device.type == "cuda" else 1024
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    left @ right
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def _find_checkpoint(checkpoints: Checkpoints) -> tuple[Snapshot | None, list[str]]:
    found = checkpoints.load()
    return found if found is not None else (None, ["no checkpoint to resume from: starting at step 0"])


def _check_equal(wire: Wire, recipe: Recipe, corpus: Corpus) -> None:
    """Ranks with different recipes or corpora would train apart silently."""
    mine = json.dumps([str(recipe), corpus.fingerprint])
    everyone = wire.gather_objects(mine)
    different = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if different:
        raise InputError(f"ranks {different} have another recipe or corpus than rank 0")


def watch_signals() -> Callable[[], bool]:
    """Remember SIGINT and SIGTERM until the step ends. Under Shoal's launcher SIGTERM ends a rank at once."""
    requested: list[int] = []

    def remember(number: int, frame: FrameType | None) -> Any:
        requested.append(number)

    signal.signal(signal.SIGINT, remember)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if ERROR_FOLDER in os.environ else remember)
    return lambda: bool(requested)
