"""Fine-tuning: which labelled examples, and how much of a model they change."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict

from shoal.core.recipe.fields import (
    Count,
    Finite,
    Fraction,
    Momentum,
    NonNegative,
    Positive,
    PositiveFloat,
    Switch,
    section,
)

Format = Literal["auto", "jsonl", "csv", "tsv", "parquet", "datasets", "conll", "squad", "lines"]

Column = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, int) else given)]
"""A column's name, or, of a table without names, its number."""


@section
class Examples:
    """Where labelled examples lie, and what is what in them."""

    train: list[str] = field(default_factory=list)
    """Files to learn from: JSONL, CSV, TSV, Parquet, a `datasets` folder, or what the task has of its own; `--data`."""
    validation: list[str] = field(default_factory=list)
    """Files to choose the best model by; empty: a `datasets` folder's own split, else `held_out` of the training files."""
    test: list[str] = field(default_factory=list)
    """Files that only the last evaluation reads; empty: what chooses the best model also judges it."""
    held_out: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.1
    """Share of the training examples kept for validation, where it has no files."""
    held_out_by: Literal["hash", "tail"] = "hash"
    """`hash`: chosen by their text, so that equal ones stay together; `tail`: the last ones of the files."""
    format: Format = "auto"
    """How the files are written; `auto`: by their endings."""
    columns: dict[str, Column] = field(default_factory=dict)
    """Which column is what, as `{text: sentence, label: stars}`; others are found by their usual names. Of a table without
    names, by number: `{label: 1, text: 2}`."""
    header: Annotated[bool, Strict()] | None = None
    """CSV and TSV: whether the first line names the columns (null: if it holds usual names)."""
    on_error: Literal["stop", "skip"] = "stop"
    """An example that can't be used: stop there, or leave it out and count it."""
    limit: Count = 0
    """Examples of each split, at most, evenly spread over its files (0: all)."""
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
    cache: Annotated[bool, Strict()] = True
    """`frozen`: compute what the head reads of each text once, and keep it in the user's cache folder."""
    layer_decay: Fraction = 1.0
    """Learning rate of each block, and of the embeddings, as a share of that of the block above."""
    head_rate: PositiveFloat = 1.0
    """Learning rate of what stands on top, as a multiple of `optimizer.learning_rate`."""
    lora: Lora = field(default_factory=Lora)


@section
class Augment:
    """Variations of training texts, drawn anew in every epoch (docs/finetuning.md)."""

    share: Fraction = 0.0
    """Share of all readings of examples that are varied (0: off)."""
    deletion: Fraction = 0.0
    """Share of a text's words that is left out."""
    swap: Fraction = 0.0
    """Share of the words that change places with another."""
    synonyms: Fraction = 0.0
    """Share of the words that are replaced by a synonym of WordNet (must be installed)."""
    characters: Fraction = 0.0
    """Share of the words that are misspelt."""
    masked: Fraction = 0.0
    """Share of the words that `masked_model` replaces by others that fit."""
    masked_model: str = ""
    """A folder with a model for masked words; empty: the model that is fine-tuned, if it is one."""
    translate_there: str = ""
    """Folder of a model that translates texts into another language, for back-translation."""
    translate_back: str = ""
    """Folder of a model that translates them back."""
    variants: Positive = 2
    """Texts that `masked_model`, and translation there and back, make of each, before training."""
    mixup: NonNegative = 0.0
    """`classify`: pooled texts are mixed in pairs by a share drawn from Beta(a, a) of this a (0: off)."""


@section
class Classify:
    """Task `classify`: one label a text or pair of texts, or several."""

    labels: list[str] = field(default_factory=list)
    """The labels by their numbers, which files may have instead; empty: those of the training examples, sorted."""
    several: Annotated[bool, Strict()] = False
    """A text may have several labels, or none: the label column holds a list."""
    weights: Literal["none", "balanced"] = "none"
    """What an example counts in training: all alike, or so that all labels weigh the same."""
    focal: NonNegative = 0.0
    """Focal loss's exponent (Lin et al. 2017, arXiv:1708.02002); 0: cross entropy."""


@section
class Tag:
    """Task `tag`: entities in a sentence, as one tag a word."""

    types: list[str] = field(default_factory=list)
    """Types of entities, in the order of their numbers; empty: those of the training examples, sorted."""
    scheme: Literal["auto", "bio", "bioes", "iob1"] = "auto"
    """How tags of the files mark where an entity begins and ends; `auto`: as those of the training examples do."""
    learned: Literal["auto", "bio", "bioes"] = "auto"
    """How the model's do; `auto`: as the files' (BIO for IOB1)."""
    units: Literal["word", "character"] = "word"
    """What is tagged of a text that is not given as tokens: words, signs and Chinese characters; or every character."""
    subwords: Literal["first", "all"] = "first"
    """Which tokens of a word learn its tag; the first is what tells it, either way."""


@section
class Answer:
    """Task `answer`: the part of a text that answers a question."""

    stride: Count = 128
    """Tokens that a window of a long text has in common with the next."""
    longest: Positive = 30
    """Tokens of an answer, at most."""
    unanswerable: Switch = None
    """Whether a text may not answer its question (null: whether that happens in the training examples)."""
    threshold: Finite = 0.0
    """By how much "no answer" must score above the best answer to be told, where there may be none."""


@section
class Chat:
    """Task `chat`: the assistant's turns of dialogues, laid out by a chat template."""

    template: str = ""
    """A Jinja file (empty: the model's own template, or, where it has none, Shoal's)."""
    reply: Positive = 128
    """Tokens of a reply to a held-out dialogue, at most."""
    judge: str = ""
    """A command that compares replies: it gets {prompt, ours, reference} as JSON and answers ours, reference or tie."""
    judge_seconds: PositiveFloat = 60.0
    """How long it may take over one."""
    against: str = ""
    """Whose replies ours are compared with: a predictions file of another model (empty: the data's own)."""


@section
class Prefer:
    """Task `prefer`: which of two answers is the better one, learnt directly (DPO)."""

    loss: Literal["dpo", "ipo"] = "dpo"
    """Rafailov et al. 2023 (arXiv:2305.18290), or Azar et al. 2023 (arXiv:2310.12036)."""
    beta: PositiveFloat = 0.1
    """How much a change of an answer's log-probability is worth: small values let the model go far from where it began."""
    smoothing: Annotated[float, Strict(), Field(ge=0, lt=0.5)] = 0.0
    """`dpo`: share of the pairs that may be labelled the wrong way round (cDPO)."""
    reference: str = ""
    """Folder of the model against which changes are counted (empty: the one that training starts from)."""


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
