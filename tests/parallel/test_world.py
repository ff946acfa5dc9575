"""Who am I: read from the environment, and refused when it makes no sense."""

import os
from pathlib import Path

import pytest
import torch

from shoal.core.errors import InputError
from shoal.parallel.mesh import make_mesh, own_channel
from shoal.parallel.wire import Wire
from shoal.parallel.world import World, batch_threads, is_rank, join
from tests.ranks import run_ranks


def place(world: World) -> tuple[int, int, int, int]:
    return world.rank, world.size, len(os.sched_getaffinity(0)), torch.get_num_threads()


def test_ranks_of_a_machine_get_cores_of_their_own() -> None:
    cores = len(os.sched_getaffinity(0))
    placed = run_ranks(2, place)
    assert [(rank, size) for rank, size, *_ in placed] == [(0, 2), (1, 2)]
    if cores >= 2:
        assert all(mine == cores // 2 for _, _, mine, _ in placed)


def test_without_a_launcher_one_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    with join("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
    torch.set_num_threads(threads)
    assert not is_rank()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"RANK": "zero", "WORLD_SIZE": "2"}, "whole numbers"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(
    environment: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=named), join("cpu"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="CUDA"), join("cuda"):
        pass


def gloo_policies(world: World) -> list[int]:
    """Of the threads that new groups come with; of the thread that asked for them, last."""
    own_channel(make_mesh(world, (1, 2, 1)).data, 60)
    tasks = list(Path("/proc/self/task").iterdir())
    found = [os.sched_getscheduler(int(task.name)) for task in tasks if "gloo" in (task / "comm").read_text()]
    return [*found, os.sched_getscheduler(0)]


def batch_is_allowed() -> bool:
    with batch_threads():
        return hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH


@pytest.mark.skipif(not batch_is_allowed(), reason="this system doesn't let threads be batch threads")
def test_gloo_s_threads_leave_the_core_to_those_that_compute() -> None:
    for *policies, own in run_ranks(2, gloo_policies):
        assert policies
        assert set(policies) == {os.SCHED_BATCH}
        assert own == os.SCHED_OTHER


def share_values(world: World) -> list[object]:
    return Wire(world).gather_objects(f"from {world.rank}")


def test_small_values_are_gathered_in_the_order_of_ranks() -> None:
    assert run_ranks(3, share_values) == [["from 0", "from 1", "from 2"]] * 3


def test_slurms_variables_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # restored after the test, also where the code sets it
        monkeypatch.delenv(name)
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_TASKS_PER_NODE": "2(x3)"}
    for name, value in (slurm | {"SLURM_JOB_NODELIST": "node7", "SLURM_JOB_ID": "123"}).items():
        monkeypatch.setenv(name, value)
    assert is_rank()
    with pytest.raises(InputError, match="RANK=5 is not below WORLD_SIZE=2"), join("cpu"):
        pass
    assert os.environ["MASTER_ADDR"] == "node7"
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"
