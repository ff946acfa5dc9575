"""A worker that trains through parameter servers: the same loop and model as any other, with other parts around them.

The main worker also speaks, saves and evaluates for all. What it saves has the form of every other run's checkpoint: the
servers' parameters and optimizer state, put together. So a run may go on with any number of servers and workers, and, where
it was synchronous, without servers too.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from shoal.core.errors import InputError, RecipeError
from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.batches import TrainingBatches
from shoal.data.ledger import Ledger, Share
from shoal.data.sequences import Sequences
from shoal.models.transformer import Transformer
from shoal.parallel.codecs import CODECS
from shoal.parallel.codecs.codec import Codec
from shoal.parallel.codecs.plain import Plain
from shoal.parallel.mesh import Axis, Mesh
from shoal.parallel.server.client import Client, Remote
from shoal.parallel.server.clock import DroppedError, Pace, Standing
from shoal.parallel.server.partition import Portion, divide_parameters
from shoal.parallel.server.syncs import MeetAtServers, PassByServers, ServedOptimizer
from shoal.parallel.shards import learnt, whole_shards
from shoal.parallel.wire import Wire
from shoal.parallel.world import World, is_rank
from shoal.train.adversary import Adversary, passes_of
from shoal.train.auto import Auto
from shoal.train.averages import AverageEvaluator
from shoal.train.checkpoint import Checkpoints, Saved, SavedElsewhere
from shoal.train.loop import Parts, train
from shoal.train.material import Evaluate, Gather, Material
from shoal.train.model_setup import compile_blocks, recompute_blocks, soften_loss, use_native_kernels
from shoal.train.patience import Patience, check_pulls, check_regular
from shoal.train.schedule import Budget, SharedBudget
from shoal.train.setup import checked_patience, make_precision, matrix_peak, put_back, told_size
from shoal.train.telemetry import Silence, Telemetry

FIRST_SIGN_SECONDS = 180.0
"""How long a worker may take to start: a new process, and its imports."""

NEARLY_DONE = 1 - 1e-9
"""The share of the budget that is used while a worker still has a piece to compute."""


@dataclass(frozen=True)
class Seat:
    """A worker's place: `rank` of `workers`, and the clock and the servers, which hold `portions`.

    `identity`: of the main worker's material, which must be every worker's.
    """

    rank: int
    workers: int
    clock: Remote
    servers: Sequence[Remote]
    portions: Sequence[Portion]
    identity: Mapping[str, str]


def check_served(recipe: Recipe, workers: int, elastic: bool) -> None:
    """Raise `InputError` for what can't be trained through servers; nothing where the recipe has none."""
    parallel, server = recipe.parallel, recipe.parallel.server
    if parallel.sync != "server":
        return
    if is_rank() or elastic:
        raise InputError(
            "with 'parallel.sync' server, start one process with --workers N: Ray starts the others, on all machines of its "
            "cluster, and starts those again that die"
        )
    if parallel.shard != "replicate" or parallel.tensor > 1 or parallel.exact:
        raise RecipeError(
            "with 'parallel.sync' server every worker computes with the whole model: leave 'parallel.shard' at replicate, "
            "'parallel.tensor' at 1, and 'parallel.exact' off"
        )
    if parallel.link.megabits or parallel.link.latency:
        raise RecipeError(
            "'parallel.link' slows down what ranks send each other, which with 'parallel.sync' server is nothing"
        )
    if recipe.optimizer.kind == "onebit_adam":
        raise RecipeError(
            "'optimizer.kind' onebit_adam sends momentum from rank to rank; with 'parallel.sync' server: adamw, muon"
        )
    if server.mode != "synchronous" and recipe.train.global_batch % workers:
        raise RecipeError(
            f"'train.global_batch' is {recipe.train.global_batch}, which {workers} workers can't share equally; with "
            f"'parallel.server.mode' {server.mode} they must: give a multiple of {workers}"
        )
    if recipe.schedule.batch_start not in (0, recipe.train.global_batch):
        raise RecipeError(
            "'schedule.batch_start' lets the batch grow with the run, and parameter servers count in steps of one size: "
            "leave it at 0, or 'parallel.sync' other than server"
        )
    check_pulls(recipe)
    make_codec(recipe)


def gathered(recipe: Recipe, gather: Gather) -> Material:
    """A worker's material. Each gathers its own, as if alone: there is no process group by which they could share."""
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.train.device != "cpu" else "cpu")
    material = gather(recipe, World(device=device))
    check_regular(material.recipe)
    return material


def make_codec(recipe: Recipe) -> Codec:
    """How pushes are made small."""
    settings = recipe.parallel.codec
    if settings.kind == "none":
        return Plain()
    if settings.kind not in CODECS:
        raise RecipeError(
            f"'parallel.codec.kind' is {settings.kind}, which parameter servers don't know; accepted: "
            f"none, {', '.join(CODECS)}"
        )
    return CODECS[settings.kind](settings)


def divide_model(recipe: Recipe, model: Transformer) -> tuple[list[Portion], dict[str, torch.Size]]:
    """(what each server holds, the parameters' shapes); Muon's matrices stay whole."""
    shapes = {name: shard.shape for name, shard in learnt(whole_shards(model)).items()}
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    whole = recipe.optimizer.kind == "muon"
    return divide_parameters(sizes, recipe.parallel.server.shards, whole, make_codec(recipe).block), shapes


def pace_of(recipe: Recipe, workers: int, tokens_per_row: float) -> Pace:
    """How the recipe's workers go together, and when they have done enough."""
    train, server = recipe.train, recipe.parallel.server
    budget = Budget.of(train)
    ends = [budget.steps * train.global_batch] if budget.steps else []
    ends += [math.ceil(budget.tokens / tokens_per_row)] if budget.tokens else []
    bound = server.bound if server.mode == "stale" else None
    piece = 0 if server.mode == "synchronous" else train.global_batch // workers
    return Pace(workers, bound, server.lease, FIRST_SIGN_SECONDS, piece, min(ends, default=0), budget.seconds)


class StepBatches:
    """Batches of workers that meet: each reads its share of every step."""

    def __init__(self, inner: TrainingBatches, client: Client) -> None:
        self.inner, self.client = inner, client
        self.next_step, self.read_ahead = inner.next_step, inner.read_ahead
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict

    def close(self, step: int, gather: Callable[[Any], list[Any]]) -> Ledger | None:
        """What all workers have read; of one that died since, the samples are missing."""

        def shares(mine: Share) -> list[Share]:
            everyone = self.client.ask("gather", step - 1, "ledger", mine)
            return [everyone.get(rank, Share()) for rank in range(self.client.wire.world.size)]

        return self.inner.close(step, shares)

    def go_to(self, standing: Standing) -> None:
        """Read on from there; who has read nothing yet, in the main worker's order, which may be a former session's."""
        fresh = self.inner.position == 0
        state = standing.begun["batches"] if fresh else self.inner.state_dict()
        self.inner.load_state_dict(state | {"position": standing.position})

    @property
    def standing(self) -> Standing:
        """Where the next step begins."""
        return Standing(position=self.inner.position, begun={"batches": self.inner.state_dict()})


class PieceBatches:
    """Batches of workers that don't meet: each reads the piece that the clock gave it. There is no ledger of these."""

    def __init__(self, inner: TrainingBatches, sync: PassByServers) -> None:
        self.inner, self.sync = inner, sync
        self.standing = Standing()

    def next_step(self) -> list[tuple[int, Sequences]]:
        """The piece's micro-batches."""
        self.inner.position = self.sync.piece
        return self.inner.next_step()

    def read_ahead(self) -> None:
        """Nothing: which piece is next, only the clock knows."""

    def close(self, step: int, gather: Callable[[Any], list[Any]]) -> Ledger | None:
        """None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Where new pieces begin, and those that were given out and not yet read."""
        standing = self.sync.client.finish([self.sync.client.clock("now_standing")])[0]
        state = {key: value for key, value in self.inner.state_dict().items() if key != "ledger"}
        return state | {"position": standing.position, "unread": list(standing.unread)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.inner.load_state_dict(state)
        self.standing = Standing(position=state["position"], unread=tuple(state.get("unread", ())))

    def go_to(self, standing: Standing) -> None:
        """The clock gives the next piece."""


class Worker:
    """One worker's parts, and how it comes to the others; `world.rank` 0 is the main one."""

    def __init__(
        self,
        material: Material,
        run: RunDirectory,
        seat: Seat,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.recipe, self.material = recipe, material = material.recipe, material
        if different := [what for what, value in seat.identity.items() if material.identity[what] != value]:
            raise InputError(f"finds other {', '.join(different)} than the main worker: give all machines the same")
        self.run, self.plan = run, material.plan
        model, context, settings = material.model, material.tokens, recipe.train
        device = model.head_weight.device
        self.world = world = World(seat.rank, seat.workers, device=device)
        share = -(-settings.global_batch // seat.workers)
        together = min(share, settings.micro_batch or share)
        use_native_kernels(model, settings.precision, together * context)
        recompute_blocks(model, settings.recompute)
        self.compiled = compile_blocks(model, settings.compile)
        soften_loss(model, recipe.regular)

        codec = recipe.parallel.codec
        feedback = codec.feedback and codec.kind != "none"
        self.client = Client(
            Wire(world), seat.clock, seat.servers, seat.portions, make_codec(recipe), feedback, codec.feedback_decay
        )
        self.optimizer = ServedOptimizer(self.client)
        precision = make_precision(settings.precision, device)
        self._make_sync(model)
        main = world.is_main
        evaluate: Evaluate = _unevaluated
        patience = Patience.of(recipe)
        if main:
            evaluate = material.evaluator(together, Wire(World(device=device)), Axis(), precision)
            if recipe.regular.ema:
                evaluate = AverageEvaluator(evaluate, self.optimizer, self.sync)
            patience = checked_patience(recipe, model, material.task, self.sync, evaluate)
        adversary = Adversary.of(recipe, model)
        self.parts = Parts(
            recipe, model, material.task, self.batches, self.optimizer, self.sync, self.budget, evaluate,
            Checkpoints(run.checkpoints, recipe.checkpoint.keep) if main else SavedElsewhere(run.checkpoints),
            Silence(), precision, sum(shard.shape.numel() for shard in self.sync.shards.values()),
            passes_of(recipe) * model.flops_per_token(context, material.task.projected),
            matrix_peak(device, settings.precision) * seat.workers,
            stop_requested, Auto(recipe, self.client.wire), patience=patience, adversary=adversary, alike=material.alike,
        )  # fmt: skip

    def _make_sync(self, model: Transformer) -> None:
        """The sync, what it reads, and when it ends: with a common step, or without."""
        recipe, world, rank, plan = self.recipe, self.world, self.world.rank, self.plan
        batch, micro_batch, server = recipe.train.global_batch, recipe.train.micro_batch, recipe.parallel.server
        mesh = Mesh(data=Axis(world.size, rank), together=Axis(world.size, rank))
        self.sync: MeetAtServers | PassByServers
        self.batches: StepBatches | PieceBatches
        self.budget: Budget | SharedBudget
        if server.mode == "synchronous":
            self.sync = MeetAtServers(self.client, self.optimizer, mesh, batch)
            inner = TrainingBatches(
                plan.rows, plan.order, batch, micro_batch, rank, world.size, recipe.data.partition
            )  # fmt: skip
            self.batches, self.budget = StepBatches(inner, self.client), self.material.budget
        else:
            sync = PassByServers(self.client, self.optimizer, mesh, bounded=server.mode == "stale")
            inner = TrainingBatches(plan.rows, plan.order, batch // world.size, micro_batch)
            self.sync, self.batches = sync, PieceBatches(inner, sync)
            self.budget = SharedBudget(lambda: 1.0 if sync.news.piece is None else min(sync.news.done, NEARLY_DONE))
        self.sync.attach(model, learnt(whole_shards(model)))

    def seed(self, resume: bool, quiet: bool) -> None:
        """Main rank: give the servers what they begin with, new or from the run's newest whole checkpoint; then speak."""
        parts, progress = self.parts, self.parts.progress
        notes = [*self.material.notes]
        if resume:
            found = parts.checkpoints.newest()
            if found is None:
                raise InputError(f"{self.run.checkpoints}: no checkpoint to go on from; leave --resume out to begin")
            path, told = found
            put_back(parts, self.run, Saved.open(path))
            notes += [*told, f"going on from step {progress.step}"]
        self.optimizer.seed(progress.step)
        kept = self.sync.kept_by_rank(self.world.size) if isinstance(self.sync, MeetAtServers) else {}
        standing = self.batches.standing
        begun = {**standing.begun, "patience": parts.patience.state_dict()}
        standing = replace(
            standing, step=progress.step, tokens=progress.tokens, seconds=progress.seconds, begun=begun
        )  # fmt: skip
        self.client.finish([self.client.clock("seed", standing, kept)])
        expected = None  # without a common step, nobody knows how many will be the main worker's
        if isinstance(self.budget, Budget):
            expected = self.budget.expected_steps(self.plan.sizes, self.plan.tokens_per_row)
        telemetry = Telemetry(self.run, progress.step if resume else None, expected, quiet)
        self.parts = replace(parts, telemetry=telemetry)
        self.sync.tell = telemetry.note
        for note in [*notes, self._describe()]:
            telemetry.note(note)

    def train(self) -> dict[str, float]:
        """Join the others and train to the end of the budget; a worker that was dropped meanwhile joins anew."""
        with signs_of_life(self.client.clock, self.client.rank, self.recipe.parallel.server.lease):
            while True:
                try:
                    self._join()
                    evaluated = train(self.parts)
                except DroppedError as dropped:
                    self.parts.telemetry.note(f"{dropped}; joining anew")
                    continue
                # what came after this worker's last step is known only now
                if isinstance(self.sync, PassByServers):
                    self.parts.progress.tokens = self.client.finish([self.client.clock("now_standing")])[0].tokens
                return evaluated

    def _join(self) -> None:
        standing, news, kept = self.client.ask("join")
        progress = self.parts.progress
        progress.tokens, progress.seconds = standing.tokens, standing.seconds
        progress.step = max(progress.step, standing.step)
        if not self.world.is_main:
            self.parts.patience.load_state_dict(standing.begun["patience"])
        self.batches.go_to(standing)
        if isinstance(self.sync, MeetAtServers):
            self.sync.step = standing.step
        else:
            self.sync.news = news
        if kept:
            self.client.load_kept(kept)
        self.client.pull()

    def _describe(self) -> str:
        server, parts, threads = self.recipe.parallel.server, self.parts, torch.get_num_threads()
        count = len(self.client.servers)
        bound = f" by up to {server.bound} steps" if server.mode == "stale" else ""
        return (
            f"{told_size(parts, self.material)} on {count} server{'s' * (count > 1)}, {server.mode}{bound}, "
            f"{self.world.size} worker{'s' * (self.world.size > 1)} × {threads} thread{'s' * (threads > 1)}, "
            f"{self.compiled}; {self.client.step_bytes / 1e6:,.2f} MB pushed and pulled a step"
        )


def _unevaluated(model: Transformer, **how: Any) -> dict[str, float]:
    """The main worker evaluates for all."""
    return {}


@contextmanager
def signs_of_life(clock: Remote, rank: int, lease: float) -> Iterator[None]:
    """Renew a worker's lease while it lives, whatever it waits for or computes."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease / 4):
            try:
                clock("renew", rank)()
            except Exception:  # the clock, or Ray, is gone: whoever trains will notice
                return

    thread = threading.Thread(target=renew, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
