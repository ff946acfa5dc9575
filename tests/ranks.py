"""Real ranks for tests: processes that meet over gloo on this machine."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed

from shoal.parallel.world import World, join

CONTEXT = multiprocessing.get_context("forkserver")
# what most ranks import, which takes each of them seconds otherwise
CONTEXT.set_forkserver_preload(["torch", "transformers", "pytest", "tests.ranks", "tests.conftest", "tests.train.runs"])


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(world, *arguments)` on `size` ranks, each a process; returns their results by rank."""
    port = free_port()
    # plain pickles: multiprocessing would share tensors by file handles, which end with the process
    work = pickle.dumps((function, arguments))
    pipes, processes = [], []
    for rank in range(size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run, args=(sender, rank, size, port, work))
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    results = []
    for rank, (pipe, process) in enumerate(zip(pipes, processes, strict=True)):
        try:
            failed, value = pickle.loads(pipe.recv_bytes())
        except EOFError:
            failed, value = True, f"rank {rank} died with exit code {process.exitcode}"
        results.append((failed, value))
    for process in processes:
        process.join()
    failures = [value for failed, value in results if failed]
    assert not failures, "\n".join(failures)
    return [value for _, value in results]


def _run(pipe: Connection, rank: int, size: int, port: int, work: bytes) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with join("cpu", threads=1, timeout=60) as world:
            function, arguments = pickle.loads(work)
            answer = (False, function(world, *arguments))
            with suppress(RuntimeError, ValueError):  # who leaves early takes along the store that others still meet at
                distributed.barrier()
    except BaseException:
        answer = (True, f"rank {rank}: {traceback.format_exc()}")
    pipe.send_bytes(pickle.dumps(answer))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alone() -> World:
    """A world of one."""
    torch.set_num_threads(1)
    return World()
