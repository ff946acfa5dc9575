"""From a recipe to how ranks divide the work and meet: the tables of strategies, and which go together."""

from collections.abc import Callable
from dataclasses import replace

import torch

from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.models.transformer import Transformer
from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.codecs import CODECS
from shoal.parallel.codecs.powersgd import PowerSGD
from shoal.parallel.coded_all_reduce import CodedAllReduce, MakeSums
from shoal.parallel.coded_scatter import CodedScatter
from shoal.parallel.coded_sum import MESSAGE_BYTES, CodedSum
from shoal.parallel.exact import ExactSum
from shoal.parallel.fully_sharded import FullySharded
from shoal.parallel.link import on_one_machine
from shoal.parallel.local import Local, check_fragments
from shoal.parallel.looked_up import LookedUp
from shoal.parallel.mesh import Axis, Mesh, divide, within_copy
from shoal.parallel.momentum import Momentum
from shoal.parallel.sharded_optimizer import ShardedOptimizer
from shoal.parallel.shared_memory import SharedMemory
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.train.optimizers import update_work

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
    "replicate": lambda wire, mesh, recipe, model: _coded_all_reduce(recipe, wire, mesh, model),
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


def mesh_sizes(recipe: Recipe, world: int) -> tuple[int, int, int]:
    """(replicate, shard, tensor) for so many ranks; `InputError` when they can't be arranged so."""
    parallel = recipe.parallel
    if parallel.shard_ranks and parallel.shard == "replicate":
        raise RecipeError("'parallel.shard_ranks' is for 'parallel.shard' other than 'replicate': nothing is divided here")
    return divide(world, 1 if parallel.shard == "replicate" else parallel.shard_ranks, parallel.tensor)


def describe(recipe: Recipe, mesh: Mesh) -> str:
    """How the ranks are arranged and meet, where that is more than copies that sum plain gradients at every step."""
    parallel, local = recipe.parallel, recipe.parallel.local
    sharded = f", {parallel.shard} over {mesh.shard.size}" if mesh.shard.size > 1 else ""
    divided = f", tensor over {mesh.tensor.size}" if mesh.tensor.size > 1 else ""
    copies = f", {mesh.replicate.size} copies" if mesh.replicate.size > 1 and (sharded or divided) else ""
    apart = parallel.sync == "local" and mesh.replicate.size > 1
    parts = f" in {local.fragments} parts" if local.fragments > 1 else ""
    meeting = f", meeting every {local.every} steps{parts}" if apart else ""
    coded = f", {parallel.codec.kind} on the wire" if parallel.codec.kind != "none" and mesh.data.size > 1 else ""
    return sharded + divided + copies + meeting + coded


def bucket_bytes(recipe: Recipe) -> int:
    """Gradients in a message."""
    return int(recipe.parallel.bucket_megabytes * 2**20)


def in_flight(recipe: Recipe) -> torch.dtype | None:
    """The type of gathered weights, where it is not the weights' own."""
    return torch.bfloat16 if recipe.train.precision == "bf16" else None


def check_meeting(recipe: Recipe, sizes: tuple[int, int, int]) -> None:
    """`RecipeError` for ways of dividing and of meeting that don't go together on (replicate, shard, tensor) ranks."""
    parallel, (replicate, shard, tensor) = recipe.parallel, sizes
    # every batch is a multiple of the first
    key, batch = ("schedule.batch_start", recipe.schedule.batch_start) if recipe.schedule.batch_start else (
        "train.global_batch", recipe.train.global_batch
    )  # fmt: skip
    kind, apart = parallel.codec.kind, parallel.sync == "local"
    if recipe.optimizer.kind == "onebit_adam" and (
        parallel.exact or parallel.shard != "replicate" or apart or kind == "none"
    ):
        raise RecipeError(
            "'optimizer.kind' is 'onebit_adam', whose momentum travels encoded every step: set 'parallel.codec.kind' (sign) "
            "and 'parallel.sync' every, with 'parallel.shard' replicate and without 'parallel.exact'"
        )
    if apart and replicate > 1:
        check_fragments(parallel.local)
        if batch % (replicate * shard):
            raise RecipeError(
                f"'parallel.sync' is 'local', where every rank must read as many sequences: '{key}' is {batch}, which "
                f"{replicate * shard} ranks can't share equally"
            )
        if kind == "powersgd":
            raise RecipeError(
                "'parallel.codec.kind' is 'powersgd', which needs whole matrices, and local updates meet in parts that are "
                f"none; accepted: none, {', '.join(CODECS)}"
            )
        if kind != "none" and tensor > 1:
            raise RecipeError(
                f"'parallel.codec.kind' is '{kind}', with which what all tensor ranks hold would drift apart under "
                "'parallel.sync' 'local'; accepted with 'parallel.tensor' above 1: none"
            )
    elif kind == "powersgd" and (shard > 1 or tensor > 1):
        raise RecipeError(
            "'parallel.codec.kind' is 'powersgd', which needs whole matrices on every rank; with 'parallel.shard' other "
            f"than 'replicate', or 'parallel.tensor' above 1, accepted: none, {', '.join(CODECS)}"
        )
    elif kind != "none" and tensor > 1 and shard > 1 and parallel.shard != "zero1":
        raise RecipeError(
            "'parallel.codec.kind' other than 'none' with 'parallel.tensor' above 1 would let what all tensor ranks hold "
            f"drift apart under 'parallel.shard' '{parallel.shard}'; accepted: 'replicate', 'zero1'"
        )


def make_sync(recipe: Recipe, wire: Wire, mesh: Mesh, model: Transformer) -> Sync:
    """The recipe's strategy; alone, there is nothing to divide, and nobody to meet."""
    parallel = recipe.parallel
    check_meeting(recipe, (mesh.replicate.size, mesh.shard.size, mesh.tensor.size))
    model.tied_gradients = None
    if parallel.exact:
        return ExactSum(wire, mesh, parallel.virtual_shards, parallel.threads or 1)
    kind = parallel.shard if mesh.shard.size > 1 else "replicate"
    if parallel.sync == "local" and mesh.replicate.size > 1:
        return _make_local(recipe, wire, mesh, DIVISIONS[kind](wire, within_copy(mesh), recipe, model))
    if parallel.sync == "auto" and kind == "replicate" and parallel.codec.kind == "none" and _share_memory(wire, mesh):
        return SharedMemory(wire, mesh, bucket_bytes(recipe), update_work(recipe.optimizer))
    return (DIVISIONS if parallel.codec.kind == "none" else CODED_DIVISIONS)[kind](wire, mesh, recipe, model)


def _share_memory(wire: Wire, mesh: Mesh) -> bool:
    """Whether all ranks hold the same, on the processors of one machine."""
    alike = mesh.data.size == wire.world.size > 1 and wire.world.device.type == "cpu" and not wire.imagined
    return alike and on_one_machine(wire)


def _make_local(recipe: Recipe, wire: Wire, mesh: Mesh, inner: Sync) -> Local:
    """Copies of the model that step apart, each divided and summed by `inner`."""
    parallel, settings = recipe.parallel, recipe.parallel.codec
    if settings.kind == "none":  # what travels for some steps may not be waited for by what is said meanwhile
        return Local(wire, replace(mesh, replicate=wire.own_channel(mesh.replicate)), inner, parallel.local)
    channel, back = wire.own_channel(mesh.replicate), wire.own_channel(mesh.replicate)
    sums, closing = (
        CodedSum(wire, channel, CODECS[name](settings), settings.feedback_decay, back)
        for name in (settings.kind, CLOSING_CODEC)
    )
    return Local(wire, mesh, inner, parallel.local, sums, settings.feedback, closing)


def _coded_all_reduce(recipe: Recipe, wire: Wire, mesh: Mesh, model: Transformer) -> CodedAllReduce:
    codec = recipe.parallel.codec
    sums, rows = make_sums(recipe, wire, mesh.data), None
    table = model.tied_table
    if table is not None and mesh.tensor.size == 1 and most_rows(recipe, model, mesh.data.size):
        rows = LookedUp(wire, mesh.data, CODECS[codec.kind](codec), table)
    sync = CodedAllReduce(
        wire,
        mesh,
        sums,
        min(bucket_bytes(recipe), MESSAGE_BYTES),
        whole=codec.kind == "powersgd",
        feedback=codec.feedback,
        momentum=_momentum(recipe, wire, mesh),
        rows=rows,
    )
    model.tied_gradients = None if rows is None else sync
    return sync


def most_rows(recipe: Recipe, model: Transformer, ranks: int) -> int:
    """How many rows of its embedding a rank may look up in a step, where these travel apart from the output projection's
    gradients; 0 where they don't.

    They do where the embedding is the output projection, and all ranks together look up no more rows than there are: each
    sends its own to all others. Momentum and matrices of low rank are of whole gradients.
    """
    whole = recipe.parallel.codec.kind == "powersgd" or recipe.optimizer.kind == "onebit_adam"
    tokens = recipe.train.global_batch * model.config.context
    if ranks == 1 or whole or model.tied_table is None or tokens > model.config.vocabulary:
        return 0
    return -(-tokens // ranks)


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
        rank, decay, seed = settings.rank, settings.feedback_decay, recipe.seed
        return lambda places: PowerSGD(wire, channel, places, rank, decay, seed, back)
    sums = CodedSum(wire, channel, CODECS[settings.kind](settings), settings.feedback_decay, back)
    return lambda places: sums


def make_scatter(recipe: Recipe, wire: Wire, mesh: Mesh) -> CodedScatter:
    """How gradients of which each rank gets its piece are summed with the recipe's codec; all ranks must call it."""
    settings = recipe.parallel.codec
    return CodedScatter(wire, mesh, CODECS[settings.kind](settings), settings.feedback, settings.feedback_decay)
