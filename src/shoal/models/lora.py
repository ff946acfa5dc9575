"""Low-rank changes of matrices (Hu et al. 2021, arXiv:2106.09685): y = W x + b + scale · B A x, where A and B are learnt.

They are put into a model from outside, beside weights that stay, and folded into these at the end: W + scale · B A is an
ordinary matrix. The fused `qkv` is changed as the three matrices that it is made of; their rows lie head by head in the
changes, and by groups in the weight. The changes of one weight are computed as one, whose rank is the sum of theirs.

Shape suffixes: R rank, C rows of a weight (outputs), D its columns (inputs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.models.config import TransformerConfig
from shoal.models.hugging_face.rules import fuse_qkv
from shoal.models.layers import Linear
from shoal.models.transformer import Transformer

PLACES = {
    "query": "attention.qkv", "key": "attention.qkv", "value": "attention.qkv", "out": "attention.out",
    "gate": "mlp.gate", "up": "mlp.up", "down": "mlp.down",
}  # fmt: skip
"""Target to the module of a block of which it is the weight, or a part of it, in the order of its rows."""


@dataclass(frozen=True)
class Change:
    """A [rank, columns] and B [rows, rank], whose product counts `scale` times."""

    a: Tensor
    b: Tensor
    scale: float


Changes = Mapping[str, Mapping[str, Change]]
"""By module of ours (`blocks.0.attention.qkv`) and target (`query`)."""


class LowRank(nn.Module):
    """A change's matrices, as parameters."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(change.a.clone()), nn.Parameter(change.b.clone())
        self.scale = change.scale

    @property
    def change(self) -> Change:
        """The matrices as they are now."""
        return Change(self.a, self.b, self.scale)


class Adapted(Linear):
    """A linear map with low-rank changes; `dropout` of their input. It takes over the weights of `linear`."""

    plain = False

    def __init__(
        self,
        linear: Linear,
        changes: Mapping[str, Change],
        rows: Mapping[str, int],
        config: TransformerConfig,
        dropout: float,
    ) -> None:
        nn.Module.__init__(self)  # torch's would make weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.kernel = linear.weight, linear.kernel
        self.register_parameter("bias", linear.bias)
        self.rows, self.config = rows, config
        self.lora = nn.ModuleDict({name: LowRank(changes[name]) for name in rows if name in changes})
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        a_RD, b_CR = self.matrices()
        return super().forward(input) + F.linear(F.linear(self.dropout(input), a_RD), b_CR)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [rank, columns] and B [rows, rank] of all changes as one; B is scaled, its rows lie as the weight's."""
        changes = {name: part.change for name, part in self.lora.items() if isinstance(part, LowRank)}
        a_RD, b_CR = beside([changes.get(name) for name in self.rows], list(self.rows.values()))
        if len(b_CR) == 1:
            return a_RD, b_CR[0]
        query, key, value = b_CR
        return a_RD, fuse_qkv(query, key, value, self.config)

    @torch.no_grad()
    def folded(self) -> Linear:
        """The linear map with the changes in its weight."""
        a_RD, b_CR = self.matrices()
        linear = Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias, linear.kernel = nn.Parameter(self.weight + b_CR @ a_RD), self.bias, self.kernel
        return linear


def beside(parts: Sequence[Change | None], rows: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Changes of matrices with common columns as one: A of all, and B [its rows, rank of all] of each, scaled.

    None where a matrix, of so many `rows`, is not changed.
    """
    found = [part for part in parts if part is not None]
    total, before = sum(part.b.shape[1] for part in found), 0
    blocks: list[Tensor] = []
    for part, count in zip(parts, rows, strict=True):
        if part is None:
            blocks.append(found[0].b.new_zeros(count, total))
            continue
        rank = part.b.shape[1]
        blocks.append(F.pad(part.b * part.scale, (before, total - before - rank)))
        before += rank
    return torch.cat([part.a for part in found]), blocks


def rows_of(config: TransformerConfig, module: str) -> dict[str, int]:
    """The targets that a module of a block (`attention.qkv`) consists of, and the rows of each."""
    keys, queries = config.kv_heads * config.head_dim, config.heads * config.head_dim
    sizes = {
        "query": queries, "key": keys, "value": keys, "out": config.dim,
        "gate": config.hidden, "up": config.hidden, "down": config.dim,
    }  # fmt: skip
    return {target: sizes[target] for target, place in PLACES.items() if place == module}


def fresh_changes(
    config: TransformerConfig, targets: Sequence[str], rank: int, alpha: float, generator: torch.Generator
) -> dict[str, dict[str, Change]]:
    """Changes of nothing, yet: A uniform within ±1/√columns, B zero. `ValueError` for a target that the model lacks."""
    if "gate" in targets and not config.gated:
        raise ValueError("the model's MLP has no gate")
    changes: dict[str, dict[str, Change]] = {}
    for layer in range(config.layers):
        for target in (name for name in PLACES if name in targets):
            place = PLACES[target]
            columns = {"out": config.heads * config.head_dim, "down": config.hidden}.get(target, config.dim)
            a_RD = (torch.rand(rank, columns, generator=generator) * 2 - 1) / columns**0.5
            change = Change(a_RD, torch.zeros(rows_of(config, place)[target], rank), alpha / rank)
            changes.setdefault(f"blocks.{layer}.{place}", {})[target] = change
    return changes


def adapt(model: Transformer, changes: Changes, dropout: float = 0.0) -> None:
    """Put changes beside the model's weights; `ValueError` for those that don't fit."""
    for name, its in changes.items():
        owner, last = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        linear, rows = getattr(owner, last), rows_of(model.config, name.split(".", 2)[2])
        for target, change in its.items():
            shape = change.b.shape[0], change.a.shape[1]
            if shape != (rows[target], linear.in_features):
                raise ValueError(
                    f"the change of {target} in {name} is one of {list(shape)}, the model's matrix has "
                    f"{[rows[target], linear.in_features]}"
                )
        setattr(owner, last, Adapted(linear, its, rows, model.config, dropout))


def fold(model: Transformer) -> None:
    """Add the changes to the weights, and leave none beside them."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Adapted):
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module.folded())


def changes_of(model: Transformer) -> dict[str, dict[str, Change]]:
    """The changes that stand beside the model's weights."""
    found: dict[str, dict[str, Change]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            place, _, target = name.partition(".lora.")
            change = module.change
            found.setdefault(place, {})[target] = Change(change.a.detach(), change.b.detach(), change.scale)
    return found
