"""What each rank would hold, and send in a step, on machines that needn't be there.

One step of the real code, on tensors that have shapes but no values and in a process group that has ranks but no processes:
what is counted is what training would do, not a formula's idea of it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from shoal.core.recipe import Recipe
from shoal.models.config import TransformerConfig
from shoal.models.loss import IGNORED, Gradients
from shoal.models.transformer import Transformer
from shoal.parallel.mesh import make_mesh
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.train.adversary import passes_of
from shoal.train.loop import empty_totals
from shoal.train.model_setup import divide_products, recompute_blocks, soften_loss
from shoal.train.optimizers import Optimizer, build_optimizer
from shoal.train.setup import make_precision
from shoal.train.strategies import make_sync, mesh_sizes


@dataclass(frozen=True)
class StateBytes:
    """Model states that a rank holds when its optimizer steps."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class Layout:
    """One rank's part: sizes of the mesh, bytes held, and bytes sent in a step by collective."""

    rank: int
    replicate: int
    shard: int
    tensor: int
    held: StateBytes
    sent: dict[str, int]


def rows(layout: Layout, world: int) -> list[tuple[str, str]]:
    """The layout in words, for people."""
    held = layout.held
    sent = ", ".join(f"{name} {_size(count)}" for name, count in sorted(layout.sent.items()) if count)
    total = sum(layout.sent.values())
    times = ", ".join(f"{8 * total / speed:.3g} s at {name}" for name, speed in LINKS.items())
    return [
        ("ranks", f"{world}: replicate {layout.replicate} × shard {layout.shard} × tensor {layout.tensor}"),
        (
            "model states",
            f"{_size(held.total)} a rank: parameters {_size(held.parameters)}, gradients {_size(held.gradients)}, "
            f"optimizer {_size(held.optimizer)}",
        ),
        ("sent a step", f"{_size(total)} by rank {layout.rank}{': ' if sent else ''}{sent}"),
        ("on the wire", f"{times}; what overlaps with computing costs less" if total else "nothing"),
    ]


LINKS = {"100 Mbit/s": 1e8, "1 Gbit/s": 1e9, "10 Gbit/s": 1e10}


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} B"


def find_layout(recipe: Recipe, config: TransformerConfig, world_size: int, rank: int = 0) -> Layout:
    """Of one rank of so many. `InputError` or `RecipeError` for what can't be arranged so."""
    sizes = mesh_sizes(recipe, world_size)
    with _imagined(world_size, rank) as world:
        wire = Wire(world, imagined=True)
        mesh = make_mesh(world, sizes)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = _without_values(Transformer(config))
            shards = divide_products(model, wire, mesh)
            if model.loss_kernel is not None:  # divided: then it sends
                soften_loss(model, recipe.regular)
            recompute_blocks(model, recipe.train.recompute)
            sync = make_sync(recipe, wire, mesh, model)
            sync.attach(model, shards)
            optimizer = build_optimizer(sync.shards, recipe.optimizer, recipe.regular, meeting=(wire, mesh.copy))
            wire.sent.clear()
            held = one_step(recipe, model, sync, optimizer)
            sync.sum_totals(empty_totals(world, 1))
            steps = recipe.parallel.local.every if sync.apart.size > 1 else 1
            for _ in range(1, steps):  # until all of the model has met once
                sync.sum_totals(empty_totals(world, 1))
                sync.after_step()
        return Layout(rank, *sizes, held, {kind: count // steps for kind, count in wire.sent.items()})


def _without_values(model: Transformer) -> Transformer:
    """A model of the meta device, as if it were materialised."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
    angles = (model.config.context, model.config.head_dim // 2)
    for kind in model.config.rotary_bases:
        for name in ("cosine", "sine"):
            model.register_buffer(kind + name, torch.empty(angles), persistent=False)
    return model


def one_step(recipe: Recipe, model: Transformer, sync: Sync, optimizer: Optimizer) -> StateBytes:
    """A step on tokens that mean nothing, with or without values; what this rank held when the optimizer stepped."""
    share = -(-recipe.train.global_batch // sync.mesh.data.size)
    size = recipe.train.micro_batch or share
    sequences = [min(size, share - start) for start in range(0, share, size) for _ in range(passes_of(recipe))]
    for index, count in enumerate(sequences):
        sync.begin_backward(last=index == len(sequences) - 1)
        tokens = torch.zeros(count, model.config.context, dtype=torch.int64)
        with make_precision(recipe.train.precision, tokens.device):
            hidden = model.before_head(model(tokens).flatten(0, 1))
            weight, bias = model.head_weight, model.head_bias
            kernel, targets = model.loss_kernel or _silent_loss, torch.full_like(tokens, IGNORED).flatten()
            found = kernel(hidden.detach(), weight.detach(), targets, True, bias=None if bias is None else bias.detach())
        assert found is not None
        of = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
        gradients = [gradient for gradient in found[1:] if gradient is not None]
        torch.autograd.backward(of, [its.to(tensor.dtype) for its, tensor in zip(gradients, of, strict=True)])
    sync.before_step()
    sync.grad_norm()
    sync.scale_grads(0.5)
    optimizer.step(1.0)
    held = state_bytes(model, sync, optimizer)
    sync.after_step()
    return held


def _silent_loss(hidden: Tensor, weight: Tensor, targets: Tensor, wanted: bool, bias: Tensor | None = None) -> Gradients:
    """Where the vocabulary is not divided, the loss sends nothing."""
    gradient = None if bias is None else torch.empty_like(bias)
    return hidden.sum(), torch.empty_like(hidden), torch.empty_like(weight), gradient


def state_bytes(model: Transformer, sync: Sync, optimizer: Optimizer) -> StateBytes:
    """What this rank holds now; call it after `sync.before_step`."""
    values = [*model.parameters(), *(shard.value for shard in sync.shards.values())]
    gradients = [value.grad for value in values if value.grad is not None]
    return StateBytes(_storage(values), _storage(gradients), _storage(optimizer.state_dict().values()))


def _storage(tensors: Iterable[Tensor]) -> int:
    """Bytes of all storages, each once: many tensors are views of one."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    storages: dict[Any, int] = {}
    for tensor in local:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


@contextmanager
def _imagined(size: int, rank: int) -> Iterator[World]:
    """A world of so many ranks, of which only this one exists."""
    if size == 1:
        yield World()
        return
    distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield World(rank, size, rank, size, torch.device("cpu"))
    finally:
        distributed.destroy_process_group()
