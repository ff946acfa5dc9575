"""Weights under our names and under a family's, by rules that work both ways.

A rule says which of our modules (or single tensors) are which of theirs, and how numbers are rearranged on the way. Which
shapes theirs must have needs no saying: it is what the rule makes of ours.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.models.config import TransformerConfig

Rearrange = Callable[..., tuple[Tensor, ...]]

ENDINGS = ("", ".weight", ".bias")
"""What follows the names of a rule: nothing where they are tensors, else what a module has of these."""


def as_they_are(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Nothing is rearranged."""
    return tensors


@dataclass(frozen=True)
class Rule:
    """Our names and theirs, and the way out and in. A model that lacks ours skips the rule."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    outwards: Rearrange = as_they_are
    inwards: Rearrange = as_they_are


def to_theirs(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under their names."""
    theirs: dict[str, Tensor] = {}
    for rule in rules:
        for ending in ENDINGS:
            mine = [ours[name + ending] for name in rule.ours if name + ending in ours]
            if mine:
                theirs |= zip((name + ending for name in rule.theirs), rule.outwards(*mine), strict=True)
    return {name: value.contiguous() for name, value in theirs.items()}


def to_ours(rules: Iterable[Rule], theirs: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, `like` those of a model; `ValueError` names what is missing, misshapen or left over."""
    ours: dict[str, Tensor] = {}
    left = set(theirs)
    for rule in rules:
        for ending in ENDINGS:
            mine = [name + ending for name in rule.ours if name + ending in like]
            if not mine:
                continue
            names = [name + ending for name in rule.theirs]
            asked = rule.outwards(*(torch.empty(like[name].shape, device="meta") for name in mine))
            for name, value in zip(names, asked, strict=True):
                if name not in theirs:
                    raise ValueError(f"the weights have no '{name}'")
                if theirs[name].shape != value.shape:
                    shapes = list(theirs[name].shape), list(value.shape)
                    raise ValueError(f"'{name}' has the shape {shapes[0]}, config.json asks for {shapes[1]}")
                left.discard(name)
            ours |= zip(mine, rule.inwards(*(theirs[name].float() for name in names)), strict=True)
    if left:
        raise ValueError(f"the weights have '{min(left)}', for which config.json has no place")
    return ours


def turned(value: Tensor) -> tuple[Tensor]:
    """A matrix the other way round; vectors stay."""
    return (value.T if value.dim() == 2 else value,)


def split_qkv(fused: Tensor, config: TransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, heads in order, out of the grouped layout (weights and biases alike)."""
    rest = fused.shape[1:]
    grouped = fused.view(config.kv_heads, -1, config.head_dim, *rest)
    query, key, value = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return query.reshape(-1, *rest), key.reshape(-1, *rest), value.reshape(-1, *rest)


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, config: TransformerConfig) -> Tensor:
    """The inverse of `split_qkv`."""
    rest = query.shape[1:]
    parts = [part.reshape(config.kv_heads, -1, config.head_dim, *rest) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def qkv_in_three(ours: str, theirs: tuple[str, str, str], config: TransformerConfig) -> Rule:
    """Queries, keys and values that are a module each there."""
    return Rule(
        (ours,),
        theirs,
        lambda fused: split_qkv(fused, config),
        lambda query, key, value: (fuse_qkv(query, key, value, config),),
    )


def qkv_in_one(ours: str, theirs: str, config: TransformerConfig, transposed: bool = False) -> Rule:
    """Queries, keys and values, each with all its heads, in one module there."""

    def outwards(fused: Tensor) -> tuple[Tensor, ...]:
        joined = torch.cat(split_qkv(fused, config))
        return turned(joined) if transposed else (joined,)

    def inwards(joined: Tensor) -> tuple[Tensor, ...]:
        (rows,) = turned(joined) if transposed else (joined,)
        sizes = [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
        query, key, value = rows.split(sizes)
        return (fuse_qkv(query, key, value, config),)

    return Rule((ours,), (theirs,), outwards, inwards)


def joined(ours: tuple[str, str], theirs: str) -> Rule:
    """Two modules that are the halves of one there."""
    return Rule(ours, (theirs,), lambda *halves: (torch.cat(halves),), lambda whole: tuple(whole.chunk(2)))
