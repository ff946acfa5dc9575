"""From a recipe to the objects that the loop works with. All choosing happens here, once."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from shoal.core import native
from shoal.core import recipe as schema
from shoal.core.errors import CheckpointError, InputError, RecipeError
from shoal.core.machine import cache_folder, cpp_compiler, python_headers
from shoal.core.model_directory import read_model_directory
from shoal.core.native import matrices
from shoal.core.native.attention import causal_attention
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.core.seeds import generator
from shoal.data.batches import TrainingBatches
from shoal.data.shards import Corpus
from shoal.models import hugging_face
from shoal.models.presets import make_config
from shoal.models.transformer import MLP, Attention, Linear, Transformer, TransformerConfig
from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.launch import ERROR_FOLDER, leave_early, stop_is_asked_for
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import TASKS
from shoal.train.checkpoint import Checkpoints
from shoal.train.evaluation import Evaluator
from shoal.train.loop import Parts, restore
from shoal.train.optimizers import build_optimizer
from shoal.train.schedule import Budget
from shoal.train.telemetry import Silence, Telemetry

SYNCS: dict[str, Callable[[Wire, schema.Parallel], Sync]] = {
    "all_reduce": lambda wire, settings: AllReduce(wire, int(settings.bucket_megabytes * 2**20)),
}
"""Name to strategy, for the recipe's `parallel.sync`."""

LEAVING_SECONDS = 8.0
"""How long a rank may take to notice by itself that another has failed."""


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
    train = recipe.train
    share = -(-train.global_batch // world.size)
    together = min(share, train.micro_batch or share)
    use_native_kernels(model, train.precision, together * config.context)
    compiled = compile_blocks(model, train.compile)
    sync = SYNCS[recipe.parallel.sync](wire, recipe.parallel)
    sync.attach(model)
    batches = TrainingBatches(
        corpus.split("train"), config.context, train.global_batch, train.micro_batch, recipe.seed,
        world.rank, world.size, recipe.data.partition,
    )  # fmt: skip
    task, precision = TASKS[recipe.task](), make_precision(train.precision, world.device)
    budget = Budget.of(train)
    checkpoints = Checkpoints(run.checkpoints, recipe.checkpoint.keep)
    evaluate = Evaluator(
        task, corpus.split("held_out"), config.context, together, wire, precision,
        recipe.evaluation.sequences,
        recipe.evaluation.final_sequences,
    )  # fmt: skip
    peak_flops = peak_of_all(wire, train.precision)
    parts = Parts(
        recipe, model, task, batches, build_optimizer(model, recipe.optimizer), sync, budget, evaluate, checkpoints,
        Silence(), precision, peak_flops, stop_requested,
    )  # fmt: skip
    notes = _resume(parts, run) if resume else []
    if world.is_main:
        expected = budget.expected_steps(train.global_batch * config.context)
        parts = replace(parts, telemetry=Telemetry(run, parts.progress.step if resume else None, expected, quiet))
    threads = torch.get_num_threads()
    notes.append(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {world.size} rank"
        f"{'s' if world.size > 1 else ''} × {threads} thread{'s' if threads > 1 else ''}, {compiled}; "
        f"matrix peak {peak_flops / 1e9:,.0f} GFLOP/s"
    )
    for note in notes:
        parts.telemetry.note(note)
    return parts


def make_transformer_config(settings: schema.Model, vocabulary: int) -> TransformerConfig:
    """The recipe's shape; `RecipeError` when it doesn't fit together."""
    try:
        config = make_config(
            settings.preset, vocabulary=vocabulary, context=settings.context, layers=settings.layers, dim=settings.dim,
            heads=settings.heads, kv_heads=settings.kv_heads, head_dim=settings.head_dim, hidden=settings.hidden,
            activation=settings.activation, qk_norm=settings.qk_norm, tied=settings.tied,
            rope_theta=settings.rope_theta, dropout=settings.dropout,
        )  # fmt: skip
        hugging_face.family(config)  # what could not be written at the end is refused at the start
        return config
    except ValueError as error:
        raise RecipeError(f"'model': {error}") from None


def build_model(recipe: Recipe, vocabulary: int, device: torch.device) -> Transformer:
    """Random weights from the recipe's seed, or those of `model.init_from`."""
    settings = recipe.model
    if settings.init_from:
        return _model_from(settings).to(device)
    model = Transformer(make_transformer_config(settings, vocabulary)).materialise()
    random = generator(recipe.seed, "weights")
    model.initialise(random, settings.init_std or 0.02, settings.embedding_std, bool(settings.zero_init))
    return model.to(device)


def _model_from(settings: schema.Model) -> Transformer:
    free = {"preset", "init_from", "dropout"}
    given = [key for key, value in vars(settings).items() if value is not None and key not in free and key[0] != "_"]
    if given:
        raise RecipeError(f"'model.{given[0]}' can't be set beside 'model.init_from': the folder's shape holds")
    try:
        config, weights = read_model_directory(Path(settings.init_from))
        return hugging_face.build(config, weights, dropout=settings.dropout)
    except ValueError as error:
        raise InputError(f"{settings.init_from}: {error}") from None


def use_native_kernels(model: Transformer, precision: str, tokens: int) -> None:
    """Give the model our own kernels where they serve: in fp32 on a CPU, with a compiler to build them.

    `tokens` of a forward pass tell whether it is work enough: below, a call's own cost is more than what it saves.
    """
    config = model.config
    if model.head_weight.device.type != "cpu" or precision != "fp32":
        return
    if tokens * config.dim * config.hidden < matrices.LEAST_WORK or not native.available():
        return
    for module in model.modules():
        if isinstance(module, Attention):
            module.causal = causal_attention
    if not matrices.serves():
        return
    for module in model.modules():
        if isinstance(module, Linear):
            module.kernel = matrices.linear
        elif isinstance(module, MLP):
            module.kernel = matrices.mlp
    model.loss_kernel = matrices.cross_entropy


def compile_blocks(model: Transformer, choice: str) -> str:
    """Compile every block with one graph, where wanted and possible; says in a word what was done.

    Blocks, not the whole model: one block's code serves all, so compiling takes a sixth of the time at six layers.
    """
    device = model.head_weight.device
    if choice == "off":
        return "eager"
    missing = None
    if device.type == "cpu":
        missing = "C++ compiler" if cpp_compiler() is None else None if python_headers() else "Python.h (python3-dev)"
    if missing:
        if choice == "on":
            raise InputError(f"train.compile is 'on', but there is no {missing} on this machine")
        return f"eager (no {missing} found)"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if device.type == "cpu":
        os.environ.setdefault("CXX", str(cpp_compiler()))
    # what can't be compiled after all runs eager, with torch's own warning
    torch._dynamo.config.suppress_errors = choice == "auto"
    for block in model.blocks:
        block.compile()
    return "compiled by block"


def make_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Autocast for bf16, nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def peak_of_all(wire: Wire, precision: str) -> float:
    """The ranks' matrix peaks together, measured by all at the same time, as they compute."""
    wire.gather_objects(None)  # a rank that still builds kernels would take this one's core, and lower the peak
    device = wire.world.device
    return wire.sum(torch.tensor(matrix_peak(device, precision), dtype=torch.float64, device=device)).item()


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


def _resume(parts: Parts, run: RunDirectory) -> list[str]:
    """Put the newest whole checkpoint back, the same on every rank; returns what is to be told."""
    found = parts.checkpoints.load()
    if found is None:
        raise InputError(f"{run.checkpoints}: no checkpoint to go on from; leave --resume out to begin")
    saved, notes = found
    try:
        restore(parts, saved)
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"{run.checkpoints}: the checkpoint doesn't fit this recipe's model and optimizer: {error}"
        ) from None
    everyone = parts.sync.wire.gather_objects((saved.step, saved.state["tokens"]))
    if len(set(everyone)) > 1:
        raise CheckpointError(
            f"ranks would go on from different steps ({', '.join(str(step) for step, _ in everyone)}); "
            f"{run.checkpoints} must be one folder that all ranks see"
        )
    return [*notes, f"going on from step {saved.step}"]


def _check_equal(wire: Wire, recipe: Recipe, corpus: Corpus) -> None:
    """Ranks with different recipes or corpora would train apart silently."""
    mine = json.dumps([str(recipe), corpus.fingerprint])
    everyone = wire.gather_objects(mine)
    different = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if different:
        raise InputError(f"ranks {different} have another recipe or corpus than rank 0")


@contextmanager
def watch_signals() -> Iterator[Callable[[], bool]]:
    """Remember SIGINT and SIGTERM until a step ends; yields whether one has come, and puts the handlers back.

    A second SIGINT ends a process that stands alone at once. Under Shoal's launcher signals come more than once, and SIGTERM
    also when another rank has failed: then this one, if it does not notice by itself, leaves after some seconds.
    """
    requested: list[int] = []
    launched = ERROR_FOLDER in os.environ

    def remember(number: int, frame: FrameType | None) -> None:
        if requested and number == signal.SIGINT and not launched:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and not stop_is_asked_for():
            backstop = threading.Timer(LEAVING_SECONDS, lambda: None if stop_is_asked_for() else leave_early())
            backstop.daemon = True
            backstop.start()
        requested.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # the launcher's signal can be lost where its agent is just starting ranks; its mark can't
        yield lambda: bool(requested) or (launched and stop_is_asked_for())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
