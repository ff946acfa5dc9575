"""Training through parameter servers in this process: a thread a worker, and no Ray."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.recipe import Recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.server.client import Remote
from shoal.parallel.server.clock import Clock
from shoal.parallel.server.shard import ParameterServer
from shoal.train.cluster import build_server_optimizer
from shoal.train.material import Gather, pretraining
from shoal.train.server import Seat, Worker, divide_model, gathered, make_codec, pace_of
from shoal.train.telemetry import read_metrics
from shoal.train.tuning import rate_multiples

NOTHING = nullcontext()


def here(target: Any, lock: AbstractContextManager[Any] = NOTHING) -> Remote:
    """Calls on an object of this process, at once; with the object's lock, one at a time."""

    def call(method: str, *arguments: Any) -> Callable[[], Any]:
        with lock:
            result = getattr(target, method)(*arguments)
        return lambda: result

    return call


def _false_after(call: Callable[[], object]) -> bool:
    call()
    return False


class ServedRun:
    """Servers and `workers` workers of one recipe, in `folder`."""

    def __init__(self, recipe: Recipe, folder: Path, workers: int, gather: Gather = pretraining) -> None:
        torch.set_num_threads(1)
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.run, self.workers, self.gather = recipe, RunDirectory(folder), workers, gather
        material = gathered(recipe, gather)
        self.identity = material.identity
        self.portions, shapes = divide_model(recipe, material.model)
        self.clock = Clock(pace_of(material.recipe, workers, material.plan.tokens_per_row))
        multiples = rate_multiples(material.model, shapes, recipe.tuning)
        build = partial(build_server_optimizer, recipe, workers, multiples)
        self.servers = [ParameterServer(portion, shapes, make_codec(recipe), build) for portion in self.portions]
        self.locks = [threading.Lock() for _ in self.servers]

    def worker(self, rank: int, stop_requested: Callable[[], bool] = lambda: False) -> Worker:
        """One of them, not yet started."""
        servers = [here(server, lock) for server, lock in zip(self.servers, self.locks, strict=True)]
        seat = Seat(rank, self.workers, here(self.clock), servers, self.portions, self.identity)
        return Worker(gathered(self.recipe, self.gather), self.run, seat, stop_requested)

    def train(
        self, resume: bool = False, before_each_push: Callable[[], object] = lambda: None
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """All of them, to the end; (the main worker's records, its weights)."""
        self.started = workers = [self.worker(rank, lambda: _false_after(before_each_push)) for rank in range(self.workers)]
        failures: list[BaseException] = []

        def train(worker: Worker) -> None:
            try:
                worker.train()
            except BaseException as error:
                failures.append(error)
                self.clock.fail(worker.world.rank, str(error), 1)
            if not worker.world.is_main:
                self.clock.leave(worker.world.rank)

        workers[0].seed(resume, quiet=True)
        threads = [threading.Thread(target=train, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        workers[0].parts.telemetry.close()
        if failures:
            raise failures[0]
        return read_metrics(self.run.metrics)[0], dict(workers[0].parts.model.state_dict())
