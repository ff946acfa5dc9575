"""How the ranks are arranged: replicate × shard × tensor, on one `DeviceMesh` (none, where all are replicas).

Tensor ranks are neighbours, as they talk the most; then those that shard; replicas are furthest apart. With eight ranks on
two hosts, sharding over 4 stays inside a host, and only sums of gradients travel between the two.
"""

from dataclasses import dataclass, field, replace
from datetime import timedelta

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shoal.core.errors import InputError
from shoal.parallel.world import World, batch_threads


@dataclass(frozen=True)
class Axis:
    """Ranks that do one thing together: how many, which of them this one is, and their group (None: of all ranks)."""

    size: int = 1
    rank: int = 0
    group: distributed.ProcessGroup | None = None


@dataclass(frozen=True)
class Mesh:
    """This rank's place along each axis.

    `data`: the ranks whose gradients are summed, which is replicate × shard; `copy`: those that hold one copy of the model
    among them, shard × tensor; `together`: all that meet in every step.
    """

    replicate: Axis = field(default_factory=Axis)
    shard: Axis = field(default_factory=Axis)
    tensor: Axis = field(default_factory=Axis)
    data: Axis = field(default_factory=Axis)
    copy: Axis = field(default_factory=Axis)
    together: Axis = field(default_factory=Axis)
    devices: DeviceMesh | None = None


def divide(world: int, shard: int, tensor: int) -> tuple[int, int, int]:
    """(replicate, shard, tensor) sizes for `world` ranks; `shard` 0 takes all that are left. `InputError` if impossible."""
    if world % tensor:
        raise InputError(
            f"parallel.tensor is {tensor}, which does not divide {world} rank{'s' * (world != 1)}; "
            f"accepted: {_divisors(world)}, or another number of ranks"
        )
    left = world // tensor
    sharding = shard or left
    if left % sharding:
        raise InputError(
            f"parallel.shard_ranks is {sharding}, which does not divide the {left} rank{'s' * (left != 1)} that are left "
            f"by {world} ranks over parallel.tensor {tensor}; accepted: {_divisors(left)}"
        )
    return left // sharding, sharding, tensor


def make_mesh(world: World, sizes: tuple[int, int, int]) -> Mesh:
    """Arrange the ranks by (replicate, shard, tensor) sizes; every rank must call it."""
    if world.size == 1:
        return Mesh()
    kind, (replicate, shard, tensor) = world.device.type, sizes
    if replicate == world.size:
        # no group beside the one that is there: each of gloo's has a thread that looks for work a hundred times a second
        everyone = Axis(world.size, world.rank)
        return Mesh(replicate=everyone, data=everyone, together=everyone)
    with batch_threads():
        devices = init_device_mesh(kind, sizes, mesh_dim_names=("replicate", "shard", "tensor"))
        data = init_device_mesh(kind, (replicate * shard, tensor), mesh_dim_names=("data", "tensor"))["data"]
        axes = {name: _axis(devices[name]) for name in ("replicate", "shard", "tensor")}
        copy = axes["shard"] if tensor == 1 else axes["tensor"]
        if shard > 1 and tensor > 1:
            both = init_device_mesh(kind, (replicate, shard * tensor), mesh_dim_names=("replicate", "copy"))
            copy = _axis(both["copy"])
    return Mesh(**axes, data=_axis(data), copy=copy, together=Axis(world.size, world.rank), devices=devices)


def within_copy(mesh: Mesh) -> Mesh:
    """The mesh of the ranks that hold one copy of the model among them."""
    return replace(mesh, replicate=Axis(), data=mesh.shard, together=mesh.copy)


def own_channel(axis: Axis, timeout: float) -> Axis:
    """The same ranks, talking apart from what else they say; all of them must call it. `timeout` is in seconds."""
    if axis.size == 1:
        return axis
    ranks = distributed.get_process_group_ranks(axis.group or distributed.group.WORLD)
    with batch_threads():
        group = distributed.new_group(ranks, timeout=timedelta(seconds=timeout), use_local_synchronization=True)
    return replace(axis, group=group)


def _axis(mesh: DeviceMesh) -> Axis:
    return Axis(mesh.size(), mesh.get_local_rank(), mesh.get_group())


def _divisors(number: int) -> str:
    return ", ".join(str(candidate) for candidate in range(1, number + 1) if number % candidate == 0)
