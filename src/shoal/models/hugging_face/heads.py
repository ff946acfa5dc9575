"""Heads of fine-tuned models: `BertForSequenceClassification` and its like, both ways.

A head that the layout has no place for, such as one over a mean, is written under a name of our own, so that nobody takes
it for another; `shoal_head` in `config.json` says what it is, for all heads.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from shoal.models.config import Pooling, TransformerConfig
from shoal.models.hugging_face.rules import Rule

Kind = Literal["sequence", "token", "span"]

ARCHITECTURES: dict[str, str] = {
    "bert": "Bert", "modernbert": "ModernBert", "gpt2": "GPT2", "llama": "Llama", "qwen3": "Qwen3",
}  # fmt: skip
"""How names of classes begin, by family."""

ENDINGS: dict[Kind, str] = {
    "sequence": "ForSequenceClassification", "token": "ForTokenClassification", "span": "ForQuestionAnswering",
}  # fmt: skip

NAMES: dict[tuple[str, Kind], str] = {
    ("bert", "sequence"): "classifier", ("bert", "token"): "classifier", ("bert", "span"): "qa_outputs",
    ("modernbert", "sequence"): "classifier", ("modernbert", "token"): "classifier", ("modernbert", "span"): "classifier",
    ("gpt2", "sequence"): "score", ("gpt2", "token"): "classifier", ("gpt2", "span"): "qa_outputs",
    ("llama", "sequence"): "score", ("llama", "token"): "score",
    ("qwen3", "sequence"): "score", ("qwen3", "token"): "score",
}  # fmt: skip
"""What the last layer is called there."""

POOLINGS: dict[str, tuple[str, ...]] = {"bert": ("first",), "modernbert": ("first", "mean")}
"""Ways of pooling that a family's classifiers have; decoders take the last token's."""


def is_theirs(family: str, config: TransformerConfig) -> bool:
    """Whether the layout has a place for the model's head."""
    if not config.head or (family, config.head) not in NAMES:  # foreign families have none
        return False
    if config.head == "sequence":
        usual = ("last",) if config.causal else POOLINGS[family]
        summed = config.pooler if family == "bert" else config.transform if family == "modernbert" else True
        return config.pooling in usual and summed
    return not config.pooler and config.transform == (family == "modernbert")


def to_config(family: str, config: TransformerConfig) -> dict[str, Any]:
    """What `config.json` says of the head."""
    if not config.head:
        return {}
    said: dict[str, Any] = {
        "shoal_head": {"kind": config.head, "outputs": config.outputs, "pooling": config.pooling},
        "num_labels": config.outputs,
    }
    if is_theirs(family, config):
        said["architectures"] = [ARCHITECTURES[family] + ENDINGS[config.head]]
        if family == "modernbert":
            said["classifier_pooling"] = "mean" if config.pooling == "mean" else "cls"
    return said


def from_config(
    family: str, shape: TransformerConfig, config: Mapping[str, Any], names: Collection[str]
) -> TransformerConfig:
    """The shape with the head that the file has; `ValueError` for one that its words don't fit."""
    said = config.get("shoal_head")
    if isinstance(said, Mapping):
        head, outputs = said.get("kind"), said.get("outputs")
        if head not in ENDINGS or not isinstance(outputs, int):
            raise ValueError(f"config.json: 'shoal_head' is damaged: {dict(said)}")
        return replace(shape, head=head, outputs=outputs, pooling=said.get("pooling", "first"))
    architecture = (config.get("architectures") or [""])[0]
    kind = next((kind for kind, ending in ENDINGS.items() if architecture.endswith(ending)), None)
    if kind is None or (family, kind) not in NAMES or f"{NAMES[family, kind]}.weight" not in names:
        return shape
    outputs = 2 if kind == "span" else len(config.get("id2label") or {}) or config.get("num_labels", 2)
    pooling: Pooling = "last" if shape.causal else "mean" if config.get("classifier_pooling") == "mean" else "first"
    return replace(shape, head=kind, outputs=outputs, pooling=pooling)


def rules(family: str, config: TransformerConfig) -> Iterator[Rule]:
    """Between its names and ours."""
    theirs = NAMES[family, cast(Kind, config.head)] if is_theirs(family, config) else "task_head.score"
    yield Rule(("task_head.score",), (theirs,))
    yield Rule(("task_head.attention",), ("task_head.attention",))
