"""Training through parameter servers on Ray: it places servers and workers, carries what they say, and restarts workers.

The process that the user started is the main worker, so what it tells, saves, and does on Ctrl-C is what every run does;
the others are Ray actors. With `RAY_ADDRESS` set, they are placed on that cluster (whose machines must see the corpus and
the run's folder under the same path); else a Ray is started on this machine, for this run alone: no dashboard, no usage
statistics.
"""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from shoal.core.errors import InputError, Interrupted, RankError, ShoalError
from shoal.core.machine import cores, total_memory_bytes
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import write_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.launch import ADVICE
from shoal.parallel.server.client import Remote
from shoal.parallel.server.clock import Clock
from shoal.parallel.server.shard import ParameterServer
from shoal.parallel.shards import Shards
from shoal.train.loop import memory_bytes
from shoal.train.material import Gather, pretraining
from shoal.train.optimizers import Optimizer, build_delayed_optimizer, build_optimizer
from shoal.train.run import Session, finish
from shoal.train.server import Seat, Worker, check_served, divide_model, gathered, make_codec, pace_of, signs_of_life
from shoal.train.setup import matrix_peak, watch_signals
from shoal.train.tuning import rate_multiples

LEAST_STORE_BYTES = 128 << 20
"""Of Ray's object store, through which everything above 100 kB travels."""

ANSWER_SECONDS = 5.0

IS_NODE = re.compile(r"node:(?!__)").match
"""Every node has a resource of this name and its address."""


def check_cluster(recipe: Recipe, workers: int, elastic: bool) -> None:
    """Raise `InputError` for a recipe that asks for parameter servers and can't have them here."""
    check_served(recipe, workers, elastic)
    if recipe.parallel.sync == "server" and find_spec("ray") is None:
        raise InputError(
            "'parallel.sync' is server, which runs on Ray, and Ray is not installed: pip install 'shoal[cluster]' "
            "(or: pip install ray)"
        )


def train_on_servers(
    recipe: Recipe, session: Session, workers: int, gather: Gather = pretraining, elsewhere: Gather | None = None
) -> dict[str, Any]:
    """Train, evaluate, and write model and result, as `train.run` does on ranks; returns the result.

    `elsewhere`: how workers of other processes come to their material, where that is not as this one does.

    Raises `RankError` with the message of a worker that failed, or when a server is lost.
    """
    # what is kept of it in files, the others find there
    material = gathered(recipe, gather)
    portions, shapes = divide_model(material.recipe, material.model)
    pace, codec = pace_of(material.recipe, workers, material.plan.tokens_per_row), make_codec(recipe)
    threads = recipe.parallel.threads or max(1, cores() // workers)
    parameters = sum(shape.numel() for shape in shapes.values())
    with _ray(workers, 4 * parameters * (3 * workers + 3)) as ray:
        places = _in_turn(ray)
        # calls that wait hold a thread each: one a worker, and one for its signs of life
        clock = ray.remote(Clock).options(**next(places), max_concurrency=2 * workers + 2).remote(pace)
        multiples = rate_multiples(material.model, shapes, recipe.tuning)
        build = partial(build_server_optimizer, recipe, workers, multiples)
        servers = [
            ray.remote(ParameterServer).options(**next(places)).remote(portion, shapes, codec, build) for portion in portions
        ]
        gpus = 1 if torch.cuda.is_available() and recipe.train.device != "cpu" else 0
        restarts = recipe.parallel.server.restarts
        kind = ray.remote(RemoteWorker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=restarts, max_task_retries=restarts, scheduling_strategy="SPREAD"
        )
        place = partial(Seat, workers=workers, portions=portions, identity=material.identity)
        others = [kind.remote(recipe, session.run, elsewhere or gather, threads, Path.cwd()) for _ in range(1, workers)]
        tasks = [worker.run.remote(place, rank, clock, servers) for rank, worker in enumerate(others, 1)]
        torch.set_num_threads(threads)
        seat = place(0, clock=remote(clock), servers=[remote(server) for server in servers])
        with watch_signals() as stop_requested:
            worker = Worker(material, session.run, seat, stop_requested)
            try:
                worker.seed(session.resume, session.quiet)
                write_recipe(session.run.recipe, recipe)
                evaluated = worker.train()
            finally:
                worker.parts.telemetry.close()
        del tasks  # what they come to, the clock has told
        device = worker.world.device
        peak = max(worker.parts.peak_flops, matrix_peak(device, recipe.train.precision) * workers)
        return finish(worker.parts, worker.material, session.run, peak, evaluated, [memory_bytes(device)])


def _in_turn(ray: Any) -> Iterator[dict[str, Any]]:
    """Options of actors that stand on one machine after the other: Ray's own spreading may put them side by side.

    No cores are kept for them: a worker waits while they work.
    """
    names = [next(name for name in node["Resources"] if IS_NODE(name)) for node in ray.nodes() if node["Alive"]]
    for name in cycle(sorted(names)):
        yield {"num_cpus": 0, "resources": {name: 0.001}}


def build_server_optimizer(recipe: Recipe, workers: int, multiples: Mapping[str, float], shards: Shards) -> Optimizer:
    """What a server steps: by the sum of all workers' gradients, or by one worker's at a time."""
    if recipe.parallel.server.mode == "synchronous":
        return build_optimizer(shards, recipe.optimizer, recipe.regular, multiples, precision=recipe.train.precision)
    return build_delayed_optimizer(workers, recipe.optimizer, shards, multiples)


class RemoteWorker:
    """A worker in a process of Ray's."""

    def __init__(self, recipe: Recipe, run: RunDirectory, gather: Gather, threads: int, folder: Path) -> None:
        self.recipe, self.run_directory, self.gather = recipe, run, gather
        if folder.is_dir():  # paths in the recipe are relative to where the user is
            os.chdir(folder)
        torch.set_num_threads(threads)

    def run(self, place: Callable[..., Seat], rank: int, clock: Any, servers: list[Any]) -> None:
        """Train to the end; Ray calls it again when this process died. An error of its own ends the run for all."""
        seat = place(rank, clock=remote(clock), servers=[remote(server) for server in servers])
        try:
            # what is gathered may take minutes, as what a frozen trunk gives
            with signs_of_life(seat.clock, rank, self.recipe.parallel.server.lease):
                material = gathered(self.recipe, self.gather)
            Worker(material, self.run_directory, seat).train()
        except Interrupted:
            pass
        except ShoalError as error:
            seat.clock("fail", rank, str(error), error.exit_code)()
        except Exception as error:
            seat.clock("fail", rank, f"unexpected {type(error).__name__}: {error}", 1)()
        seat.clock("leave", rank)()


def remote(actor: Any) -> Remote:
    """Calls on a Ray actor, as workers make them; an actor's own `ShoalError` comes through as it was raised there."""
    import ray

    def call(method: str, *arguments: Any) -> Callable[[], Any]:
        reference = getattr(actor, method).remote(*arguments)

        def wait() -> Any:
            try:
                return ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, ShoalError) else error from None
            except ray.exceptions.RayError as error:
                text = str(error).splitlines()[0][:200]
                raise RankError(f"a parameter server is lost ({text}). {ADVICE}") from None

        return wait

    return call


@contextmanager
def _ray(processes: int, store_bytes: int) -> Iterator[Any]:
    """Ray, joined or started, and left or stopped at the end with all that runs there for us."""
    # read when ray is imported, or when its processes start
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what it tells of dead processes goes to stdout, which is ours
    os.environ.setdefault("RAY_worker_niceness", "0")  # or the main worker, which is none of Ray's, would outrun the others
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # its own level comes too late for what starting tells
    address = os.environ.get("RAY_ADDRESS", "local")
    quiet: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        store = max(LEAST_STORE_BYTES, min(store_bytes, total_memory_bytes() // 4))  # what doesn't fit goes to disk
        quiet |= {"num_cpus": processes, "object_store_memory": store, "include_dashboard": False}
    try:
        _check_reachable(address)
        ray.init(**quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = f"Ray can't be used: {str(error).splitlines()[0][:300]}"
        if address != "local":
            advice = "is it up, and does it ask for a token (then set RAY_AUTH_MODE=token)?"
            reason = f"RAY_ADDRESS is {address}: {reason}; {advice}"
        raise ShoalError(reason) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise `OSError` where nobody answers: Ray itself would try for minutes."""
    if found := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=ANSWER_SECONDS).close()
