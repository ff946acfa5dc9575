"""From a recipe to the objects that the loop works with. All choosing happens here, once."""

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

from shoal.core import recipe as schema
from shoal.core.errors import CheckpointError, InputError, RecipeError
from shoal.core.machine import code_fingerprint
from shoal.core.model_directory import read_model_directory
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.core.seeds import generator
from shoal.data.batches import TrainingBatches
from shoal.data.shards import Corpus
from shoal.models import hugging_face
from shoal.models.presets import make_config
from shoal.models.transformer import Transformer, TransformerConfig
from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.codecs import CODECS
from shoal.parallel.codecs.powersgd import PowerSGD
from shoal.parallel.coded_all_reduce import CodedAllReduce, MakeSums
from shoal.parallel.coded_scatter import CodedScatter
from shoal.parallel.coded_sum import MESSAGE_BYTES, CodedSum
from shoal.parallel.exact import ExactSum
from shoal.parallel.fully_sharded import FullySharded
from shoal.parallel.launch import ERROR_FOLDER, leave_early, stop_is_asked_for
from shoal.parallel.local import Local
from shoal.parallel.mesh import Axis, Mesh, divide, make_mesh, within_copy
from shoal.parallel.momentum import Momentum
from shoal.parallel.sharded_optimizer import ShardedOptimizer
from shoal.parallel.shards import Shards
from shoal.parallel.sync import Sync
from shoal.parallel.throttle import Throttle
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import TASKS
from shoal.train.auto import Auto, decided
from shoal.train.checkpoint import Checkpoints, Saved, SavedElsewhere
from shoal.train.evaluation import Evaluator
from shoal.train.exact import resolve
from shoal.train.loop import Parts, restore
from shoal.train.model_setup import compile_blocks, divide_products, recompute_blocks, use_native_kernels
from shoal.train.optimizers import build_optimizer
from shoal.train.schedule import Budget
from shoal.train.telemetry import Silence, Telemetry

Division = Callable[[Wire, Mesh, Recipe, Transformer], Sync]

DIVISIONS: dict[str, Division] = {
    "replicate": lambda wire, mesh, recipe, model: AllReduce(wire, mesh, bucket_bytes(recipe)),
    "zero1": lambda wire, mesh, recipe, model: ShardedOptimizer(wire, mesh, bucket_bytes(recipe)),
    "zero2": lambda wire, mesh, recipe, model: FullySharded(
        wire, mesh, list(model.blocks), keep=True, in_flight=in_flight(recipe)
    ),
    "zero3": lambda wire, mesh, recipe, model: FullySharded(
        wire, mesh, list(model.blocks), keep=False, in_flight=in_flight(recipe)
    ),
}
"""Name to strategy, for the recipe's `parallel.shard`."""

CODED_DIVISIONS: dict[str, Division] = {
    "replicate": lambda wire, mesh, recipe, model: CodedAllReduce(
        wire,
        mesh,
        make_sums(recipe, wire, mesh.data),
        min(bucket_bytes(recipe), MESSAGE_BYTES),
        whole=recipe.parallel.codec.kind == "powersgd",
        feedback=recipe.parallel.codec.feedback,
        momentum=_momentum(recipe, wire, mesh),
    ),
    "zero1": lambda wire, mesh, recipe, model: ShardedOptimizer(
        wire, mesh, bucket_bytes(recipe), make_scatter(recipe, wire, mesh)
    ),
    "zero2": lambda wire, mesh, recipe, model: FullySharded(
        wire, mesh, list(model.blocks), keep=True, in_flight=in_flight(recipe), coded=make_scatter(recipe, wire, mesh)
    ),
    "zero3": lambda wire, mesh, recipe, model: FullySharded(
        wire, mesh, list(model.blocks), keep=False, in_flight=in_flight(recipe), coded=make_scatter(recipe, wire, mesh)
    ),
}
"""The same where gradients travel encoded."""

CLOSING_CODEC = "int8"
"""For the last mean of local updates, after which nothing makes up for what a codec drops; twice what int4 sends."""

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
    recipe = resolve(recipe, world.size)
    corpus = Corpus.open(Path(recipe.corpus_directory))
    wire = make_wire(recipe, world)
    _check_equal(wire, recipe, corpus)
    train = recipe.train
    mesh = make_mesh(world, mesh_sizes(recipe, world.size))
    model = build_model(recipe, corpus.vocabulary, world.device)
    config = model.config
    size, flops = sum(p.numel() for p in model.parameters()), model.flops_per_token(config.context)
    share = -(-train.global_batch // mesh.data.size)
    together = min(share, train.micro_batch or share)
    shards, compiled = lay_out_model(model, recipe, wire, mesh, together * config.context)
    task, precision = TASKS[recipe.task](), make_precision(train.precision, world.device)
    auto = Auto(recipe, wire, decided(wire, run.checkpoints) if resume else None)
    recipe = auto.decide(model, task, precision, together, -(-share // together))
    sync = make_sync(recipe, wire, mesh, model)
    sync.attach(model, shards)
    batches = TrainingBatches(
        corpus.split("train"), config.context, train.global_batch, train.micro_batch, recipe.seed,
        mesh.data.rank, mesh.data.size, recipe.data.partition,
    )  # fmt: skip
    budget = Budget.of(train)
    checkpoints = Checkpoints(run.checkpoints, recipe.checkpoint.keep, world.rank, world.size)
    evaluate = Evaluator(
        task, corpus.split("held_out"), config.context, together, wire, mesh.data, precision,
        recipe.evaluation.sequences,
        recipe.evaluation.final_sequences,
    )  # fmt: skip
    peak_flops = peak_of_all(wire, train.precision)
    parts = Parts(
        recipe, model, task, batches, build_optimizer(sync.shards, recipe.optimizer), sync, budget, evaluate, checkpoints,
        Silence(), precision, size, flops, peak_flops, stop_requested, auto,
    )  # fmt: skip
    notes = [*(_resume(parts, run) if resume else []), *auto.notes]
    if world.is_main:
        expected = budget.expected_steps(train.global_batch * config.context)
        parts = replace(parts, telemetry=Telemetry(run, parts.progress.step if resume else None, expected, quiet))
    threads = torch.get_num_threads()
    notes.append(
        f"{size / 1e6:.1f}M parameters on {world.size} rank{'s' if world.size > 1 else ''} × "
        f"{threads} thread{'s' if threads > 1 else ''}{describe(recipe, mesh)}, {compiled}; "
        f"matrix peak {peak_flops / 1e9:,.0f} GFLOP/s"
    )
    for note in notes:
        parts.telemetry.note(note)
    return parts


def make_wire(recipe: Recipe, world: World) -> Wire:
    """The way to the other ranks, as slow as the recipe wants it to be."""
    link = recipe.parallel.link
    slow = world.size > 1 and (link.megabits or link.latency)
    return Wire(world, throttle=Throttle(link.megabits, link.latency, world.device) if slow else None)


def mesh_sizes(recipe: Recipe, world: int) -> tuple[int, int, int]:
    """(replicate, shard, tensor) for so many ranks; `InputError` when they can't be arranged so."""
    parallel = recipe.parallel
    if parallel.shard_ranks and parallel.shard == "replicate":
        raise RecipeError("'parallel.shard_ranks' is for 'parallel.shard' other than 'replicate': nothing is divided here")
    return divide(world, 1 if parallel.shard == "replicate" else parallel.shard_ranks, parallel.tensor)


def describe(recipe: Recipe, mesh: Mesh) -> str:
    """How the ranks are arranged, where that is more than copies."""
    sharded = f", {recipe.parallel.shard} over {mesh.shard.size}" if mesh.shard.size > 1 else ""
    divided = f", tensor over {mesh.tensor.size}" if mesh.tensor.size > 1 else ""
    return (
        sharded + divided + (f", {mesh.replicate.size} copies" if mesh.replicate.size > 1 and (sharded or divided) else "")
    )


def bucket_bytes(recipe: Recipe) -> int:
    """Gradients in a message."""
    return int(recipe.parallel.bucket_megabytes * 2**20)


def in_flight(recipe: Recipe) -> torch.dtype | None:
    """The type of gathered weights, where it is not the weights' own."""
    return torch.bfloat16 if recipe.train.precision == "bf16" else None


def prepare_model(model: Transformer, recipe: Recipe, wire: Wire, mesh: Mesh, tokens: int) -> tuple[Sync, str]:
    """Divide, compile and watch the model, which forwards `tokens` at a time; (its sync, how it was compiled)."""
    shards, compiled = lay_out_model(model, recipe, wire, mesh, tokens)
    sync = make_sync(recipe, wire, mesh, model)
    sync.attach(model, shards)
    return sync, compiled


def lay_out_model(model: Transformer, recipe: Recipe, wire: Wire, mesh: Mesh, tokens: int) -> tuple[Shards, str]:
    """Divide and compile the model, which forwards `tokens` at a time; (what each rank holds, how it was compiled)."""
    wire.make_equal(tensor.data for tensor in (*model.parameters(), *model.buffers()))
    use_native_kernels(model, recipe.train.precision, tokens)
    shards = divide_products(model, wire, mesh)
    recompute_blocks(model, recipe.train.recompute)
    return shards, compile_blocks(model, recipe.train.compile)


def make_sync(recipe: Recipe, wire: Wire, mesh: Mesh, model: Transformer) -> Sync:
    """The recipe's strategy; alone, there is nothing to divide, and nobody to meet."""
    parallel = recipe.parallel
    if recipe.optimizer.kind == "onebit_adam" and (
        parallel.exact or parallel.shard != "replicate" or parallel.sync == "local" or parallel.codec.kind == "none"
    ):
        raise RecipeError(
            "'optimizer.kind' is 'onebit_adam', whose momentum travels encoded every step: set 'parallel.codec.kind' (sign) "
            "and 'parallel.sync' every, with 'parallel.shard' replicate and without 'parallel.exact'"
        )
    if parallel.exact:
        return ExactSum(wire, mesh, parallel.virtual_shards, parallel.threads or 1)
    kind = parallel.shard if mesh.shard.size > 1 else "replicate"
    if parallel.sync == "local" and mesh.replicate.size > 1:
        return _make_local(recipe, wire, mesh, DIVISIONS[kind](wire, within_copy(wire.world, mesh), recipe, model))
    return (DIVISIONS if parallel.codec.kind == "none" else CODED_DIVISIONS)[kind](wire, mesh, recipe, model)


def _make_local(recipe: Recipe, wire: Wire, mesh: Mesh, inner: Sync) -> Local:
    """Copies of the model that step apart, each divided and summed by `inner`."""
    parallel, batch = recipe.parallel, recipe.train.global_batch
    if batch % mesh.data.size:
        raise RecipeError(
            f"'parallel.sync' is 'local', where every rank must read as many sequences: 'train.global_batch' is {batch}, "
            f"which {mesh.data.size} ranks can't share equally"
        )
    kind = parallel.codec.kind
    if kind == "none":
        return Local(wire, mesh, inner, parallel.local)
    if kind == "powersgd" or mesh.tensor.size > 1:
        raise RecipeError(
            f"'parallel.codec.kind' is {kind!r}, which local updates can't use "
            f"{'as fragments are no matrices' if kind == 'powersgd' else 'with parallel.tensor above 1'}; accepted: "
            f"{'bf16, fp16, int8, int4, topk, sign' if kind == 'powersgd' else 'none'}"
        )
    channel, back = wire.own_channel(mesh.replicate), wire.own_channel(mesh.replicate)
    sums, closing = (
        CodedSum(wire, channel, CODECS[name](parallel.codec), parallel.codec.feedback_decay, back)
        for name in (kind, CLOSING_CODEC)
    )
    return Local(wire, mesh, inner, parallel.local, sums, parallel.codec.feedback, closing)


def _momentum(recipe: Recipe, wire: Wire, mesh: Mesh) -> Momentum | None:
    """What 1-bit Adam sends; a dry run tells of the steps after the warm-up."""
    settings = recipe.optimizer
    warmup = 0 if wire.imagined else settings.onebit_warmup
    return Momentum(settings.beta1, warmup, mesh.data.size) if settings.kind == "onebit_adam" else None


def make_sums(recipe: Recipe, wire: Wire, axis: Axis) -> MakeSums:
    """How gradients are summed over an axis with the recipe's codec; all of its ranks must call it."""
    settings = recipe.parallel.codec
    channel, back = wire.own_channel(axis), wire.own_channel(axis)
    if settings.kind == "powersgd":
        if recipe.parallel.tensor > 1:
            raise RecipeError("'parallel.codec.kind' is 'powersgd', which needs whole matrices: set 'parallel.tensor' 1")
        rank, decay, seed = settings.rank, settings.feedback_decay, recipe.seed
        return lambda places: PowerSGD(wire, channel, places, rank, decay, seed, back)
    sums = CodedSum(wire, channel, CODECS[settings.kind](settings), settings.feedback_decay, back)
    return lambda places: sums


def make_scatter(recipe: Recipe, wire: Wire, mesh: Mesh) -> CodedScatter:
    """How gradients of which each rank gets its piece are summed with the recipe's codec; all ranks must call it."""
    settings = recipe.parallel.codec
    if settings.kind == "powersgd":
        raise RecipeError(
            "'parallel.codec.kind' is 'powersgd', which needs whole matrices on every rank; with 'parallel.shard' other "
            f"than 'replicate', accepted: {', '.join(CODECS)}"
        )
    if recipe.parallel.tensor > 1 and recipe.parallel.shard != "zero1":
        raise RecipeError(
            "'parallel.codec.kind' other than 'none' with 'parallel.tensor' above 1 would let what all tensor ranks hold "
            f"drift apart under 'parallel.shard' '{recipe.parallel.shard}'; accepted: 'replicate', 'zero1'"
        )
    return CodedScatter(wire, mesh, CODECS[settings.kind](settings), settings.feedback, settings.feedback_decay)


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
    """Random weights from the recipe's seed, or those of `model.init_from`, if that has all words of the corpus."""
    settings = recipe.model
    if settings.init_from:
        model = _model_from(settings).to(device)
        if model.config.vocabulary < vocabulary:
            raise InputError(
                f"{recipe.corpus_directory} has a vocabulary of {vocabulary}, the model only {model.config.vocabulary}; "
                "prepare the corpus with the model's tokenizer (--tokenizer.path)"
            )
        return model
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
    wire = parts.sync.wire
    path, notes, problem = wire.gather_objects(_newest(parts.checkpoints) if wire.world.is_main else None)[0]
    if problem is not None:
        raise problem
    if path is None:
        raise InputError(f"{run.checkpoints}: no checkpoint to go on from; leave --resume out to begin")
    saved = _opened(wire, run.checkpoints, path)
    put_back(parts, run, saved)
    return [*notes, f"going on from step {saved.step}"]


def put_back(parts: Parts, run: RunDirectory, saved: Saved) -> None:
    """Restore a checkpoint; `InputError` when it is of another model or optimizer."""
    try:
        restore(parts, saved)
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"{run.checkpoints}: the checkpoint doesn't fit this recipe's model and optimizer: {error}"
        ) from None


def _opened(wire: Wire, folder: Path, name: str) -> Saved:
    """The checkpoint, on every rank or on none: `CheckpointError` when one does not see what rank 0 does."""
    saved, problem = None, None
    try:
        saved = Saved.open(folder / name)
    except InputError as error:
        problem = str(error)
    for rank, other in enumerate(wire.gather_objects(problem)):
        if other is not None:
            raise CheckpointError(
                f"rank {rank} doesn't see the checkpoint that rank 0 goes on from: {other}; {folder} must be one folder "
                "that all ranks see"
            )
    assert saved is not None
    return saved


def _newest(checkpoints: Checkpoints | SavedElsewhere) -> tuple[str | None, list[str], CheckpointError | None]:
    """(name of the newest whole checkpoint, what is to be told, what is wrong)."""
    try:
        found = checkpoints.newest()
    except CheckpointError as error:
        return None, [], error
    return (None, [], None) if found is None else (found[0].name, found[1], None)


def _check_equal(wire: Wire, recipe: Recipe, corpus: Corpus) -> None:
    """Ranks with different recipes, corpora or programs would train apart silently: all refuse, with one message."""
    mine = {"recipe": str(recipe), "corpus": corpus.fingerprint, "Shoal": code_fingerprint(), "torch": torch.__version__}
    everyone = wire.gather_objects(mine)
    for what, value in everyone[0].items():
        different = [str(rank) for rank, other in enumerate(everyone) if other[what] != value]
        if different:
            ranks = f"rank{'s' * (len(different) > 1)} {', '.join(different)}"
            raise InputError(f"{ranks} started with another {what} than rank 0: give all ranks the same")


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
