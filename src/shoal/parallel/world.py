"""Who am I among the ranks: read once from the environment, at the border, and passed down as a value."""

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from shoal.core.errors import InputError, RankError
from shoal.core.machine import cores
from shoal.parallel.heartbeat import Heartbeat
from shoal.parallel.launch import ERROR_FOLDER
from shoal.parallel.reaper import presence


class UnreachableError(RankError):
    """The ranks did not come together: if one has failed, its own message says why."""


@dataclass(frozen=True)
class World:
    """One rank's place: `rank` of `size`, `local_rank` of `local_size` on this machine, and where it computes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    heartbeat: Heartbeat | None = None
    """What this rank tells the others about how far it is; None when alone."""

    @property
    def is_main(self) -> bool:
        """Rank 0 speaks and writes for all."""
        return self.rank == 0


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has made this process one of several ranks."""
    # only srun sets the step's tasks: inside sbatch or salloc alone, this process is no rank
    return "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


@contextmanager
def join(device: str = "auto", threads: int = 0, timeout: float = 300.0) -> Iterator[World]:
    """Join the other ranks (`RANK` and `WORLD_SIZE`, or Slurm's variables), and leave at the end.

    Cores are divided among the ranks of a machine; `threads` overrides how many compute threads a rank uses. `timeout`
    is in seconds. Raises `InputError` for an unusable device, `UnreachableError` when the others can't be reached.
    """
    world = _read_world(os.environ, device)
    _divide_cores(world, threads)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    with ExitStack() as leaving:
        if ERROR_FOLDER in os.environ:
            leaving.enter_context(presence(Path(os.environ[ERROR_FOLDER]), world.rank))
        if world.size > 1:
            backend = "nccl" if world.device.type == "cuda" else "gloo"
            try:
                with batch_threads():
                    distributed.init_process_group(
                        backend,
                        store=_fresh_store(timeout),
                        rank=world.rank,
                        world_size=world.size,
                        timeout=timedelta(seconds=timeout),
                    )
                leaving.callback(distributed.destroy_process_group)
                heartbeat = Heartbeat(world.rank, world.size, timeout)
            except (RuntimeError, ValueError) as error:
                raise UnreachableError(f"rank {world.rank} of {world.size} could not reach the others: {error}") from error
            leaving.callback(heartbeat.stop)
            world = replace(world, heartbeat=heartbeat)
        yield world


@contextmanager
def batch_threads() -> Iterator[None]:
    """Threads that start within are batch threads of the system's scheduler: gloo's, which must not interrupt computing.

    Each shares a core with a thread that computes. On a slow link it is woken some thousand times a second, and would
    displace that one each time; as a batch thread, it gets what has come in the meantime at the system's next tick, or at
    once where nobody computes. Nothing changes where the system doesn't know or allow that.
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # new threads inherit it
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _fresh_store(timeout: float) -> Store | None:
    """A place of its own for ranks that torchrun has started again; None where torch's is fresh anyway.

    The agent's store outlives them, with the addresses of their predecessors, which who comes first would wait for. Agents
    of several machines count restarts apart, so there the count names no place that all would meet at.
    """
    started = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if started == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, None, False, timeout=timedelta(seconds=timeout), wait_for_workers=False)
    return PrefixStore(f"started-again-{started}", store)


def _read_world(environment: Mapping[str, str], device: str) -> World:
    if "RANK" not in environment and is_rank(environment):
        _adopt_slurm(environment)
    try:
        rank, size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", str(size)))
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be whole numbers: {error}") from None
    if not 0 <= rank < size:
        raise InputError(f"RANK={rank} is not below WORLD_SIZE={size}")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and devices < local_size:
        raise InputError(
            f"train.device is 'cuda', but torch finds {devices} CUDA device(s) for {local_size} rank(s) on this machine; "
            "`shoal doctor` tells more"
        )
    chosen = torch.device("cuda", local_rank) if devices >= local_size and device != "cpu" else torch.device("cpu")
    return World(rank, size, local_rank, local_size, chosen)


def _adopt_slurm(environment: Mapping[str, str]) -> None:
    """Translate srun's variables into torch's; the first host of the job is where the ranks meet."""
    os.environ["RANK"] = environment["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    os.environ["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    os.environ["LOCAL_WORLD_SIZE"] = environment["SLURM_TASKS_PER_NODE"].split("(")[0].split(",")[0]
    if "MASTER_ADDR" not in environment:
        hosts = environment.get("SLURM_JOB_NODELIST", socket.gethostname())
        if "[" in hosts:
            listed = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
            hosts = listed.stdout
        os.environ["MASTER_ADDR"] = hosts.replace(",", " ").split()[0]
        os.environ["MASTER_PORT"] = str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000)


def _divide_cores(world: World, threads: int) -> None:
    """Give each local rank its own cores, so that ranks don't take turns on one while another idles.

    Where Slurm has bound each task to its `--cpus-per-task`, that is done already.
    """
    if "SLURM_CPUS_PER_TASK" in os.environ:
        torch.set_num_threads(threads or int(os.environ["SLURM_CPUS_PER_TASK"]))
        return
    share = max(1, cores() // world.local_size)
    if world.local_size > 1 and hasattr(os, "sched_setaffinity"):  # macOS has no such thing
        mine = sorted(os.sched_getaffinity(0))[world.local_rank * share : (world.local_rank + 1) * share]
        if mine:
            os.sched_setaffinity(0, mine)
    torch.set_num_threads(threads or share)
