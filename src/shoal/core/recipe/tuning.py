"""Fine-tuning: which labelled examples, and how much of a model they change."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, Strict

from shoal.core.recipe.fields import Count, Fraction, Momentum, NonNegative, Positive, PositiveFloat, section

Format = Literal["auto", "jsonl", "csv", "tsv", "parquet", "datasets", "conll", "squad", "lines"]


@section
class Examples:
    """Where labelled examples lie, and what is what in them."""

    train: list[str] = field(default_factory=list)
    """Files to learn from: JSONL, CSV, TSV, Parquet, a `datasets` folder, or what the task has of its own; `--data`."""
    validation: list[str] = field(default_factory=list)
    """Files to choose the best model by; empty: `held_out` of the training files."""
    test: list[str] = field(default_factory=list)
    """Files that only the last evaluation reads; empty: the validation's."""
    held_out: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.1
    """Share of the training examples kept for validation, where it has no files."""
    held_out_by: Literal["hash", "tail"] = "hash"
    """`hash`: chosen by their text, so that equal ones stay together; `tail`: the last ones of the files."""
    format: Format = "auto"
    """How the files are written; `auto`: by their endings."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column is what, as `{text: sentence, label: stars}`; others are found by their usual names."""
    header: Annotated[bool, Strict()] | None = None
    """CSV and TSV: whether the first line names the columns (null: if it holds usual names)."""
    on_error: Literal["stop", "skip"] = "stop"
    """An example that can't be used: stop there, or leave it out and count it."""
    limit: Count = 0
    """Examples of each split, at most (0: all)."""
    length: Count = 0
    """Tokens of an example, at most; longer ones are cut at their end, and counted (0: the model's context)."""


@section
class Lora:
    """Low-rank changes of matrices (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Positive = 8
    """Columns of the thin matrices."""
    alpha: PositiveFloat = 16.0
    """The change counts `alpha / rank` times."""
    dropout: Momentum = 0.0
    """Share of the thin matrices' inputs that is dropped in training."""
    targets: list[Literal["query", "key", "value", "out", "gate", "up", "down"]] = field(
        default_factory=lambda: ["query", "value"]
    )
    """Which matrices of each block."""


@section
class Tuning:
    """How much of the model is trained, and what stands on top of it."""

    what: Literal["all", "top", "frozen", "lora"] = "all"
    """All weights; the last `top` blocks and the head; the head alone; or thin matrices beside the model's, and the head."""
    top: Positive = 2
    """`top`: blocks."""
    pooling: Literal["auto", "first", "mean", "attention", "last"] = "auto"
    """How a text's hidden states become one: `auto`: the first token's (encoders), or the last's (decoders)."""
    dropout: Momentum = 0.1
    """Before the head."""
    layer_decay: Fraction = 1.0
    """Learning rate of each block, and of the embeddings, as a share of that of the block above."""
    head_rate: PositiveFloat = 1.0
    """Learning rate of the new head, as a multiple of `optimizer.learning_rate`."""
    lora: Lora = field(default_factory=Lora)


@section
class Classify:
    """Task `classify`: one label a text or pair of texts, or several."""

    labels: list[str] = field(default_factory=list)
    """The labels, in the order of their numbers; empty: those of the training examples, sorted."""
    several: Annotated[bool, Strict()] = False
    """A text may have several labels, or none: the label column holds a list."""
    weights: Literal["none", "balanced"] = "none"
    """What an example counts: all alike, or so that all labels weigh the same."""
    focal: NonNegative = 0.0
    """Focal loss's exponent (Lin et al. 2017, arXiv:1708.02002); 0: cross entropy."""


@section
class Translate:
    """Task `translate`: a source, and what it is in another language."""

    prefix: Annotated[bool, Strict()] = True
    """The source sees itself both ways, as an encoder's would."""
    beams: Positive = 4
    """Beginnings of a translation that are kept while it is written (1: greedy)."""
    length_penalty: NonNegative = 1.0
    """By which power of its length a translation is favoured (Wu et al. 2016; 0: not at all)."""
    tokens: Positive = 128
    """Of a translation, at most; so many of the context, but no more than half of it, a source leaves free."""
    early: Count = 0
    """Examples that an evaluation in mid-run translates (0: none, it tells the loss alone)."""
    words: Literal["13a", "intl", "char", "zh"] = "13a"
    """What BLEU takes for a word, by sacrebleu's names: `char` and `zh` for text without spaces."""


@section
class Generate:
    """Task `generate`: a prompt, and the text that completes it."""

    prefix: Annotated[bool, Strict()] = False
    """The prompt sees itself both ways."""
    between: str = "\n"
    """Text that is put between prompt and completion."""
    cut: Literal["end", "start"] = "end"
    """What a prompt loses where it is too long; `start` keeps what is next to the completion."""
    beams: Positive = 1
    """Beginnings of a completion that are kept while it is written (1: greedy)."""
    length_penalty: NonNegative = 1.0
    """By which power of its length a completion is favoured (Wu et al. 2016; 0: not at all)."""
    tokens: Positive = 128
    """Of a completion, at most; so many of the context, but no more than half of it, a prompt leaves free."""
    early: Count = 0
    """Examples that an evaluation in mid-run completes (0: none, it tells the loss alone)."""
