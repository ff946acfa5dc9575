"""The recipe: everything that a run depends on, as frozen, typed data with few keys and good defaults.

A file a group of sections. A recipe is read by `core.recipe_file`, built once and passed down; no function reads global
state. Adding a key is adding a field there, with its docstring: help texts and error messages are made from these.
"""

from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from shoal.core.recipe.data import Clean, Data, Tokenizer
from shoal.core.recipe.fields import Count, section
from shoal.core.recipe.model import Model
from shoal.core.recipe.parallel import Codec, Link, Local, Parallel, Server
from shoal.core.recipe.tasks import Infill, Masked, Samples
from shoal.core.recipe.training import Checkpoint, Evaluation, Lookahead, Optimizer, Regular, Schedule, Train
from shoal.core.recipe.tuning import (
    Answer,
    Augment,
    Chat,
    Classify,
    Examples,
    Generate,
    Lora,
    Prefer,
    Tag,
    Translate,
    Tuning,
)  # fmt: skip

__all__ = [
    "Answer", "Augment", "Chat", "Checkpoint", "Classify", "Clean", "Codec", "Data", "Evaluation", "Examples", "Generate",
    "Infill", "Link", "Local", "Lookahead", "Lora", "Masked", "Model", "Optimizer", "Parallel", "Prefer", "Recipe",
    "Regular", "Samples", "Schedule", "Server", "Tag", "Tokenizer", "Train", "Translate", "Tuning",
]  # fmt: skip


Objective = Literal["causal", "masked", "infill"]
"""What is learned from text alone."""

Labelled = Literal["classify", "tag", "answer", "translate", "generate", "chat", "prefer"]
"""What is learned from labelled examples."""


@section
class Recipe:
    """One run. Every key has a default; a recipe file states what differs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run's folder, `runs/NAME`."""
    seed: Count = 1
    """Where all random streams come from."""
    task: Literal[Objective, Labelled] = "causal"
    """What the model learns: by `pretrain` the next token, the tokens behind a mask (encoders), or parts that are cut out;
    by `finetune` what examples are labelled with."""
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    optimizer: Optimizer = field(default_factory=Optimizer)
    regular: Regular = field(default_factory=Regular)
    schedule: Schedule = field(default_factory=Schedule)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    parallel: Parallel = field(default_factory=Parallel)
    samples: Samples = field(default_factory=Samples)
    masked: Masked = field(default_factory=Masked)
    infill: Infill = field(default_factory=Infill)
    examples: Examples = field(default_factory=Examples)
    tuning: Tuning = field(default_factory=Tuning)
    augment: Augment = field(default_factory=Augment)
    search: dict[str, list[Any] | dict[str, Any]] = field(default_factory=dict)
    """What `finetune --search` tries: by key, a list of values, or `{low: 1e-5, high: 1e-3, log: true}`."""
    classify: Classify = field(default_factory=Classify)
    tag: Tag = field(default_factory=Tag)
    answer: Answer = field(default_factory=Answer)
    chat: Chat = field(default_factory=Chat)
    prefer: Prefer = field(default_factory=Prefer)
    translate: Translate = field(default_factory=Translate)
    generate: Generate = field(default_factory=Generate)

    @property
    def verb(self) -> str:
        """The command that runs it."""
        return "pretrain" if self.task in get_args(Objective) else "finetune"

    @property
    def corpus_directory(self) -> str:
        """Where the corpus lies; of a mixture, the first, whose tokenizer is that of all."""
        return self.corpus_directories[0]

    @property
    def corpus_directories(self) -> list[str]:
        """Where the corpora lie: one, or all of a mixture."""
        named = [name if "/" in name or name in (".", "..") else f"data/{name}" for name in self.data.mixture]
        return named or [self.data.directory or f"data/{self.name}"]
