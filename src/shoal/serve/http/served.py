"""What a server serves: one model, and what it can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from shoal.data.chat_template import ChatTemplate
from shoal.data.tokenizer import TextTokenizer
from shoal.serve.embedding import Embedder
from shoal.serve.labelling import Labeller
from shoal.serve.request import Engine

Kind = Literal["chat", "completion", "embeddings", "classify", "tag"]
"""What a model is first of all for; a chat model also completes, and encoders give embeddings, whatever they tell."""


@dataclass(frozen=True)
class Writer:
    """A decoder's engine, and how prompts are laid out for it."""

    engine: Engine
    tokenizer: TextTokenizer
    slots: int
    context: int
    """Tokens of a prompt and its text together."""
    encode: Callable[[str], Sequence[int]]
    """A prompt's tokens."""
    template: ChatTemplate | None = None
    """How dialogues are laid out (None: the model has not learnt any)."""


@dataclass(frozen=True)
class Served:
    """A model, by the name that requests call it by; `created`: in seconds since 1970."""

    name: str
    kind: Kind
    context: int
    created: int = 0
    labels: list[str] | None = None
    writer: Writer | None = None
    embedder: Embedder | None = None
    labeller: Labeller | None = None
