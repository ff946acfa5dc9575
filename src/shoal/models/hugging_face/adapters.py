"""Adapters in the layout of `peft`: low-rank changes of a model's matrices, and whole modules that stand in for its own.

`adapter_config.json` says how much the changes count, `adapter_model.safetensors` has A and B of each by the name of the
module that they change. Where a family keeps several of our matrices in one module (GPT-2's `c_attn`), its change is theirs
side by side: A of all, B with blocks of zeros, the rank the sum of theirs.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.models.config import TransformerConfig
from shoal.models.hugging_face import FAMILIES, family
from shoal.models.hugging_face.heads import ARCHITECTURES, ENDINGS, NAMES, Kind, is_theirs
from shoal.models.lora import PLACES, Change, Changes, beside, rows_of

PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"

TASKS: dict[Kind, str] = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}
"""`peft`'s names of what a head is for."""

TURNED = ("gpt2",)
"""Families whose matrices are kept the other way round."""


@dataclass(frozen=True)
class Adapter:
    """Changes by the name of their module, and whole tensors by their name; `config`: that of the file."""

    config: Mapping[str, Any]
    changes: Mapping[str, Change]
    saved: Mapping[str, Tensor]

    @classmethod
    def parse(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Adapter":
        """From what the files hold; `ValueError` for adapters of other kinds."""
        kind = config.get("peft_type")
        if kind != "LORA":
            raise ValueError(f"an adapter of the kind '{kind}' is not supported; supported: LORA")
        for key, usual in (("use_dora", False), ("bias", "none"), ("lora_bias", False), ("use_qalora", False)):
            if config.get(key, usual) != usual:
                raise ValueError(f"an adapter with '{key}' {config[key]!r} is not supported, only with {usual!r}")
        named = {name.removeprefix(PREFIX): value.float() for name, value in tensors.items()}
        changes: dict[str, Change] = {}
        for name, a_RD in named.items():
            if name.endswith(A):
                module = name.removesuffix(A)
                b_CR = named.get(module + B)
                if b_CR is None or a_RD.dim() != 2 or b_CR.dim() != 2 or b_CR.shape[1] != len(a_RD):
                    raise ValueError(f"the adapter's matrices A and B of '{module}' don't fit each other")
                rank, alpha = len(a_RD), _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
                changes[module] = Change(a_RD, b_CR, alpha / (rank**0.5 if config.get("use_rslora") else rank))
        saved = {name: value for name, value in named.items() if not name.endswith((A, B))}
        if unknown := [name for name in saved if "lora_" in name]:
            raise ValueError(
                f"the adapter has '{unknown[0]}': changes of embeddings, or of single values, are not supported"
            )
        return cls(config, changes, saved)


def merged(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], adapter: Adapter, changes: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(content of config.json, weights) of a model with an adapter; without its `changes`, with its whole modules alone.

    `ValueError` for a module that the model lacks.
    """
    whole, said = dict(weights), dict(config)
    for module, change in adapter.changes.items() if changes else ():
        name = _found(f"{module}.weight", weights)
        delta = change.scale * (change.b @ change.a)
        delta = delta.T if config.get("model_type") in TURNED else delta
        if name is None or weights[name].shape != delta.shape:
            there = "lacks it" if name is None else f"has one of {list(weights[name].shape)}"
            raise ValueError(f"the adapter changes '{module}' by a matrix of {list(delta.shape)}; the model {there}")
        whole[name] = weights[name].float() + delta
    for name, value in adapter.saved.items():
        whole[_found(name, weights) or name] = value
    if head := _head(said.get("model_type", ""), adapter):
        said |= head
    return said, whole


def changes_from_hugging_face(adapter: Adapter, config: TransformerConfig) -> dict[str, dict[str, Change]]:
    """The adapter's changes under our names; `ValueError` for a module that can't be changed here."""
    places = _places(config)
    found: dict[str, dict[str, Change]] = {}
    for module, change in adapter.changes.items():
        name = _found(module, places)
        if name is None:
            raise ValueError(f"the adapter changes '{module}', which is none of the matrices of the model's blocks")
        targets = places[name]
        rows = [rows_of(config, ours.split(".", 2)[2])[target] for ours, target in targets]
        if len(change.b) != sum(rows):
            raise ValueError(f"the adapter's change of '{module}' has {len(change.b)} rows, the matrix {sum(rows)}")
        for (ours, target), b_CR in zip(targets, change.b.split(rows), strict=True):
            used = (b_CR != 0).any(0)
            if len(targets) > 1 and bool((change.b != 0).any()):  # of several side by side, its own part
                if not bool(used.any()):
                    continue
                found.setdefault(ours, {})[target] = Change(change.a[used], b_CR[:, used].clone(), change.scale)
            else:
                found.setdefault(ours, {})[target] = Change(change.a.clone(), b_CR.clone(), change.scale)
    return found


def changes_to_hugging_face(changes: Changes, config: TransformerConfig) -> dict[str, Change]:
    """Our changes by the names of the family's modules."""
    found: dict[str, Change] = {}
    for name, targets in _places(config).items():
        parts = [changes.get(ours, {}).get(target) for ours, target in targets]
        present = [part for part in parts if part is not None]
        if not present:
            continue
        if len(targets) == 1:
            found[name] = present[0]
            continue
        rows = [rows_of(config, ours.split(".", 2)[2])[target] for ours, target in targets]
        a_RD, blocks = beside(parts, rows)
        found[name] = Change(a_RD, torch.cat(blocks) / present[0].scale, present[0].scale)
    return found


def adapter_files(
    changes: Changes, config: TransformerConfig, weights: Mapping[str, Tensor], base: str, dropout: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(content of adapter_config.json, tensors) for `peft`; `weights`: the model's, as `weights_to_hugging_face` gives them.

    What stands on the trunk is written whole, as modules that were trained beside the changes.
    """
    theirs = changes_to_hugging_face(changes, config)
    kind = family(config)
    ranks = {name: len(change.a) for name, change in theirs.items()}
    alphas = {name: change.scale * ranks[name] for name, change in theirs.items()}
    (rank, alpha), _ = Counter((ranks[name], alphas[name]) for name in theirs).most_common(1)[0]
    special = [name for name in theirs if (ranks[name], alphas[name]) != (rank, alpha)]
    modules, saved = _modules_of_head(kind, config, weights)
    none = "CAUSAL_LM" if config.causal and not config.head else "FEATURE_EXTRACTION"
    content: dict[str, Any] = {
        "peft_type": "LORA", "task_type": TASKS[config.head] if is_theirs(kind, config) and config.head else none,
        "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "bias": "none", "fan_in_fan_out": kind in TURNED,
        "rank_pattern": {name: ranks[name] for name in special}, "alpha_pattern": {name: alphas[name] for name in special},
        "target_modules": list(theirs), "modules_to_save": modules if is_theirs(kind, config) else None,
    }  # fmt: skip
    if config.head and not is_theirs(kind, config):
        content["shoal_head"] = {"kind": config.head, "outputs": config.outputs, "pooling": config.pooling}
    tensors = {PREFIX + name + A: change.a for name, change in theirs.items()}
    tensors |= {PREFIX + name + B: change.b for name, change in theirs.items()}
    return content, tensors | {PREFIX + name: value for name, value in saved.items()}


def _modules_of_head(
    kind: str, config: TransformerConfig, weights: Mapping[str, Tensor]
) -> tuple[list[str], dict[str, Tensor]]:
    """The modules that stand on the trunk, and their tensors."""
    if not config.head:
        return [], {}
    name = NAMES[kind, config.head] if is_theirs(kind, config) else "task_head"
    modules = [name, *(["pooler"] if config.pooler else []), *(["head"] if config.transform else [])]
    saved = {
        tensor: value for tensor, value in weights.items() for module in modules if f".{module}." in f".{tensor}"
    }  # fmt: skip
    return modules, saved


def _head(kind: str, adapter: Adapter) -> dict[str, Any]:
    """What config.json must say of a head that the adapter brings along."""
    if "shoal_head" in adapter.config:
        return {"shoal_head": adapter.config["shoal_head"]}
    for head, task in TASKS.items():
        name = NAMES.get((kind, head))
        if task == adapter.config.get("task_type") and f"{name}.weight" in adapter.saved:
            outputs = len(adapter.saved[f"{name}.weight"])
            return {"architectures": [ARCHITECTURES[kind] + ENDINGS[head]], "num_labels": outputs, "id2label": None}
    return {}


def _places(config: TransformerConfig) -> dict[str, tuple[tuple[str, str], ...]]:
    """By their module: of which of our modules, and targets in these, it has the rows, in their order."""
    chosen = FAMILIES[family(config)]
    whole = is_theirs(family(config), config) if config.head else config.causal or config.transform
    prefix = chosen.prefix if whole else ""  # of what `peft` puts it into: with a head of the family's, or the body alone
    places: dict[str, tuple[tuple[str, str], ...]] = {}
    for rule in chosen.rules(config, prefix):
        inner = [(ours, ours.split(".", 2)[2]) for ours in rule.ours if ours.startswith("blocks.")]
        parts = tuple((ours, target) for ours, place in inner for target, its in PLACES.items() if its == place)
        if len(rule.theirs) == len(parts):
            places |= {name: (part,) for name, part in zip(rule.theirs, parts, strict=True)}
        elif parts:
            places[rule.theirs[0]] = parts
    return places


def _found(name: str, names: Collection[str]) -> str | None:
    """What a name is among others, which may be of the body alone, or of more than that."""
    if name in names:
        return name
    bare = name.partition(".")[2]
    if bare in names:
        return bare
    ends = ("." + name, "." + bare) if bare.count(".") > 2 else ("." + name,)  # of a block: under another family's name
    return next((other for other in names if other.endswith(ends)), None)


def _of_module(pattern: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """A setting that `peft` may have of its own for some modules, by regular expressions of their names' ends."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise
