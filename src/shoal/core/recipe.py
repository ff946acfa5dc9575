"""The recipe: everything that a run depends on, as frozen, typed data with few keys and good defaults.

A recipe is read by `core.recipe_file`, built once and passed down; no function reads global state. Adding a key is
adding a field here, with its docstring: help texts and error messages are made from these.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

section = dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))

Positive = Annotated[int, Strict(), Field(gt=0)]
Count = Annotated[int, Strict(), Field(ge=0)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]
Momentum = Annotated[float, Strict(), Field(ge=0, lt=1)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


Switch = Annotated[bool, Strict()] | None


@section
class Clean:
    """Which documents are kept, and what is mended in them; all off unless asked (null: as the preset has it)."""

    preset: Literal["off", "text", "web"] = "off"
    """`text`: repair, exact and near; `web`: these, and the rules gopher, repetition, c4 and fineweb."""
    repair: Switch = None
    """Mend mojibake, entities, control characters and line ends."""
    languages: list[str] = field(default_factory=list)
    """Keep only documents in these languages (`en`, `zh`, `ja`, …); empty: all."""
    language_confidence: Fraction = 0.65
    """How sure of its language a document must be."""
    gopher: Switch = None
    """Quality rules of Gopher: length, symbols, letters, stop words."""
    repetition: Switch = None
    """Gopher's rules against repeated lines, paragraphs and n-grams."""
    c4: Switch = None
    """Rules of C4: lines about scripts and policies, pages with curly brackets, too few sentences."""
    c4_terminal: Annotated[bool, Strict()] = False
    """`c4`: also drop every line that doesn't end in punctuation."""
    fineweb: Switch = None
    """Rules of FineWeb: lists, menus, repeated lines."""
    thresholds: dict[str, float | dict[str, float]] = field(default_factory=dict)
    """Limits of rules: `{words_least: 20}` for all languages, `{zh: {words_least: 20}}` for one."""
    mask: list[str] = field(default_factory=list)
    """Personal data to replace: `email`, `phone`, `ip`, `card`, `chinese_id`."""
    decontaminate: list[str] = field(default_factory=list)
    """Sources of evaluation texts: documents that share 13 words in a row with one are dropped."""
    exact: Switch = None
    """Drop documents whose text was there before."""
    near: Switch = None
    """Drop documents that are similar to an earlier one (MinHash)."""
    near_similarity: Fraction = 0.45
    """`near`: Jaccard similarity of shingles that makes duplicates; with a tenth of the words changed it is 0.57."""
    near_shingle: Positive = 3
    """`near`: words in a shingle."""
    near_bands: Positive = 32
    """`near`: bands of hashes; more find more."""
    near_rows: Positive = 4
    """`near`: hashes in a band; more make fewer candidates."""
    judged_characters: Positive = 1_000_000
    """A longer document is judged by so much of its beginning."""
    memory_megabytes: PositiveFloat = 250.0
    """Memory for finding duplicates, beside 0.1 to 0.4 GB a process for Python, its libraries and the text under way."""


@section
class Data:
    """Which text, and where its token shards lie."""

    sources: list[str] = field(default_factory=lambda: ["stdlib"])
    """What to read: `stdlib` (Python's own source), files, folders, `*.jsonl`, `*.parquet`, `.gz`/`.zst` of these,
    a `datasets` folder, or `hub:OWNER/NAME`."""
    directory: str = ""
    """Where the corpus lies; empty: `data/NAME`."""
    text_field: str = "text"
    """The field of JSONL, Parquet and `datasets` rows that holds the text."""
    held_out: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.02
    """Share that is kept for evaluation."""
    held_out_by: Literal["document", "tail"] = "document"
    """`document`: whole documents, chosen by a hash of their text; `tail`: the end of every document."""
    shard_megabytes: PositiveFloat = 8.0
    """Text in a shard file, in millions of bytes; a worker tokenizes, and an interruption loses, so much at a time."""
    partition: Literal["interleaved", "blocks"] = "interleaved"
    """Which sequences of a global batch a rank reads: every Nth, or one contiguous block."""
    clean: Clean = field(default_factory=Clean)


@section
class Tokenizer:
    """How text becomes tokens."""

    kind: Literal["bpe", "char"] = "bpe"
    """Byte-level BPE, or one token a character."""
    vocabulary: Positive = 8192
    """Tokens in a trained BPE vocabulary, special ones included."""
    path: str = ""
    """An existing `tokenizer.json` (or a folder with one) to use instead of training one."""
    sample_bytes: Positive = 16_000_000
    """Text that a tokenizer is trained on, at most."""


@section
class Model:
    """The Transformer: a preset's shape, and what to change in it (null keeps the preset's value)."""

    preset: str = "gpt2-small"
    """A named shape, which the other keys change; a wrong one is answered with all names."""
    init_from: str = ""
    """A folder in the Hugging Face layout to start from; its shape holds, only `dropout` may be set beside it."""
    context: Positive | None = None
    """Longest sequence, in tokens."""
    layers: Positive | None = None
    """Transformer blocks."""
    dim: Positive | None = None
    """Width of the residual stream."""
    heads: Positive | None = None
    """Attention heads."""
    kv_heads: Positive | None = None
    """Heads of keys and values (grouped-query attention)."""
    head_dim: Positive | None = None
    """Width of a head."""
    hidden: Positive | None = None
    """Width inside the MLP."""
    activation: Literal["gelu", "silu", "relu2"] | None = None
    """Nonlinearity of the MLP."""
    qk_norm: Annotated[bool, Strict()] | None = None
    """Normalise queries and keys."""
    tied: Annotated[bool, Strict()] | None = None
    """Share the token embedding with the output projection."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary frequencies."""
    dropout: Momentum | None = None
    """Share of embedding, attention and residual values dropped in training."""
    zero_init: Annotated[bool, Strict()] | None = None
    """Start the projections into the residual stream at zero."""
    init_std: PositiveFloat | None = None
    """Standard deviation of the random initial weights."""
    embedding_std: PositiveFloat | None = None
    """Standard deviation of the initial token embedding, where it differs from `init_std`."""


@section
class Train:
    """How long, how much at once, and in which precision."""

    steps: Count = 0
    """Stop after so many optimizer steps (0: no limit)."""
    tokens: Count = 0
    """Stop after so many tokens (0: no limit)."""
    minutes: NonNegative = 0.0
    """Stop after so much training time (0: no limit). The schedule follows whichever budget ends first."""
    global_batch: Positive = 16
    """Sequences per optimizer step over all ranks."""
    micro_batch: Count = 0
    """Sequences per forward pass on one rank (0: all of the rank's share at once)."""
    clip: NonNegative = 1.0
    """Largest global gradient norm (0: no clipping)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products; weights, gradients and optimizer state stay fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks (`auto`: where a compiler is found)."""
    max_skipped: Count = 3
    """Steps that may be skipped because a loss or gradient was not finite, before the run stops."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What backward computes again instead of having kept it (activation checkpointing): nothing, all but matrix
    products and attention, or all of a block."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


@section
class Lookahead:
    """Slow weights around the optimizer (Zhang et al. 2019, arXiv:1907.08610)."""

    every: Count = 0
    """Steps between pulls of the slow weights (0: off)."""
    pull: Fraction = 0.5
    """How far the slow weights move towards the fast ones."""


@section
class Optimizer:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest."""

    kind: Literal["adamw", "muon", "onebit_adam"] = "adamw"
    """The optimizer; `onebit_adam`: AdamW that freezes its variance, and whose momentum travels by `parallel.codec`."""
    onebit_warmup: Positive = 100
    """`onebit_adam`: steps before its variance is frozen, in which gradients travel plain."""
    learning_rate: PositiveFloat = 6e-4
    """Peak learning rate of AdamW."""
    beta1: Momentum = 0.9
    """AdamW's first moment."""
    beta2: Momentum = 0.95
    """AdamW's second moment."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay of matrices; vectors (norms, biases) are never decayed."""
    embedding_rate: PositiveFloat = 1.0
    """Learning rate of embeddings and output projection, as a multiple of `learning_rate`."""
    muon_learning_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon."""
    muon_momentum: Momentum = 0.95
    """Muon's Nesterov momentum."""
    muon_weight_decay: NonNegative = 0.0
    """Muon's decoupled decay."""
    muon_iterations: Literal[3, 5] = 5
    """Newton–Schulz iterations."""
    muon_row_decay: Momentum = 0.0
    """Running mean of the squared update of each row, by which rows are evened (0: off)."""
    lookahead: Lookahead = field(default_factory=Lookahead)


@section
class Schedule:
    """The learning rate over the run, as a share of its peak."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Decay after the warm-up: cosine, linear, warm-up–stable–decay, or none."""
    warmup: NonNegative = 0.02
    """Steps of warm-up; below 1, a share of the run."""
    decay: Fraction = 0.2
    """`wsd`: share of the run that the final decay takes."""
    final: Fraction = 0.1
    """Learning rate at the end, as a share of the peak."""


@section
class Evaluation:
    """Held-out loss during and after training."""

    every: Count = 0
    """Steps between evaluations (0: only at the end)."""
    sequences: Count = 0
    """Held-out sequences that an evaluation in mid-run reads (0: the whole split)."""
    final_sequences: Count = 0
    """Held-out sequences that the last evaluation reads (0: the whole split)."""


@section
class Checkpoint:
    """What is saved, to go on from."""

    every: Count = 0
    """Steps between checkpoints (0: only when interrupted and at the end)."""
    keep: Positive = 2
    """Checkpoints kept; older ones are removed."""


@section
class Codec:
    """How what ranks send is made small."""

    kind: Literal["none", "bf16", "fp16", "int8", "int4", "topk", "powersgd", "sign"] = "none"
    """Half precision, blocks of integers, the largest values alone, two thin matrices, or one bit a value."""
    feedback: Annotated[bool, Strict()] = True
    """Keep what a codec drops, and add it next time."""
    feedback_decay: Fraction = 1.0
    """Share of the kept that is added."""
    keep: Annotated[float, Strict(), Field(gt=0, le=1)] = 1 / 64
    """`topk`: share of the values that travel."""
    rank: Positive = 4
    """`powersgd`: columns of the thin matrices."""


@section
class Local:
    """Local updates (DiLoCo, Douillard et al. 2023, arXiv:2311.08105): ranks step apart, and meet every so many steps."""

    every: Positive = 15
    """Steps between meetings."""
    outer: Literal["sgd", "nesterov"] = "sgd"
    """The outer optimizer: `sgd` at a rate of 1 takes the mean of the ranks' weights."""
    learning_rate: PositiveFloat = 1.0
    """Of the outer optimizer; with `nesterov` 0.4 to 0.8."""
    momentum: Momentum = 0.5
    """Of the outer optimizer, `nesterov` alone; the more ranks and steps between meetings, the more of it: up to 0.9."""
    warmup: Count = 0
    """Meetings over which the outer momentum rises from 0."""
    fragments: Positive = 1
    """Parts of the model that meet at different times, evenly spread (streaming)."""
    overlap: Count = 0
    """Steps that ranks go on while a fragment travels."""
    mix: Fraction = 0.0
    """Share of a rank's own weights that stays when a fragment arrives (0: the common ones, and what the rank has changed
    since it sent)."""
    after: Count = 0
    """Steps with a meeting each before ranks part (post-local SGD)."""


@section
class Server:
    """Parameters kept by servers, to which workers push and from which they pull (needs the extra `cluster`)."""

    shards: Positive = 1
    """Servers among which the parameters are divided."""
    mode: Literal["synchronous", "stale", "asynchronous"] = "synchronous"
    """Whether a worker waits for all others, for those more than `bound` steps behind, or for none."""
    bound: Count = 2
    """`stale`: steps that a worker may be ahead of the slowest."""
    lease: PositiveFloat = 30.0
    """Seconds without a sign after which the others no longer wait for a worker."""
    restarts: Count = 3
    """How often a worker that died is started again."""


@section
class Link:
    """A link that is slower than the real one, for measuring what a slower network would do (0: as it is)."""

    megabits: NonNegative = 0.0
    """Millions of bits that a rank sends a second, at most."""
    latency: NonNegative = 0.0
    """Seconds from sending to receiving."""


@section
class Parallel:
    """How ranks divide the work and meet."""

    sync: Literal["auto", "every", "local", "server"] = "auto"
    """When ranks meet: `every` step, every so many steps (`local`), through a `server`, or as the link asks (`auto`)."""
    codec: Codec = field(default_factory=Codec)
    local: Local = field(default_factory=Local)
    server: Server = field(default_factory=Server)
    link: Link = field(default_factory=Link)
    shard: Literal["replicate", "zero1", "zero2", "zero3"] = "replicate"
    """What ranks divide instead of each holding all: nothing, the optimizer's state, gradients too, parameters too."""
    shard_ranks: Count = 0
    """Ranks that divide one copy of it; others hold further copies (0: all ranks, one copy)."""
    tensor: Positive = 1
    """Ranks that divide each matrix product; they read the same sequences."""
    exact: Annotated[bool, Strict()] = False
    """Give the same bits on 1, 2, 4, … ranks: one fixed order for all sums, one thread a rank unless `threads` is given."""
    virtual_shards: Positive = 8
    """`exact`: into how many micro-batches a step is always cut, a power of two; as many ranks at most."""
    bucket_megabytes: PositiveFloat = 8.0
    """Gradients that travel in one message; smaller overlaps earlier, larger costs less per byte."""
    threads: Count = 0
    """Compute threads a rank (0: the machine's cores divided by the ranks on it)."""
    timeout: PositiveFloat = 300.0
    """Seconds after which a stuck collective ends the run."""


@section
class Samples:
    """Text that is generated when training ends."""

    prompts: list[str] = field(default_factory=list)
    """What to continue."""
    tokens: Positive = 80
    """Length of each."""
    temperature: NonNegative = 0.8
    """0: always the likeliest token."""


@section
class Recipe:
    """One run. Every key has a default; a recipe file states what differs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run's folder, `runs/NAME`."""
    seed: Count = 1
    """Where all random streams come from."""
    task: Literal["causal"] = "causal"
    """What the model learns."""
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    parallel: Parallel = field(default_factory=Parallel)
    samples: Samples = field(default_factory=Samples)

    @property
    def corpus_directory(self) -> str:
        """Where the corpus lies."""
        return self.data.directory or f"data/{self.name}"
