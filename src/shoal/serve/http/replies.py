"""What clients are answered, in OpenAI's shapes. Only fields that were given are sent (`json_of`)."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from shoal import __version__

FINGERPRINT = f"shoal-{__version__}"

LEAST = -9999.0
"""What stands for the logarithm of a probability that is zero, which JSON has no number for."""


class Shape(BaseModel, protected_namespaces=()):
    """An answer or a part of one."""


class PromptDetails(Shape):
    """`cached_tokens`: those of the prompt that had been computed before, for another request."""

    cached_tokens: int


class Usage(Shape):
    """Tokens of prompts, each counted once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class EncoderUsage(Shape):
    """Tokens of the inputs, special ones included."""

    prompt_tokens: int
    total_tokens: int


class TokenLogprob(Shape):
    """A token; `bytes`: of its text in UTF-8 (null: it is a part of a character)."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TokenLogprob):
    """A token that was written, and the likeliest in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Shape):
    """Of a choice, or a part of one."""

    content: list[ChatTokenLogprob]
    refusal: None


class CompletionLogprobs(Shape):
    """Of a choice, or a part of one; `text_offset`: where each token begins, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


Ended = Literal["stop", "length"] | None


class Reply(Shape):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    """A reply, whole."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: Ended


class ChatReply(Shape):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Shape):
    """What a reply goes on with."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Shape):
    """A part of a reply."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Ended


class ChatChunk(Shape):
    """An event of a stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(Shape):
    """A text, or a part of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Ended


class CompletionReply(Shape):
    """The answer of /v1/completions, and an event of a stream of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Embedding(Shape):
    """A text's vector: numbers, or base64 of them as little-endian fp32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingReply(Shape):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EncoderUsage


class Classified(Shape):
    """A text's `label` (null: none, of a model that tells several), all that it has, and the probability of every label."""

    index: int
    label: str | None
    labels: list[str]
    scores: dict[str, float]
    truncated: bool


class ClassifyReply(Shape):
    """The answer of /v1/classify."""

    object: Literal["list"]
    model: str
    data: list[Classified]
    usage: EncoderUsage


class TaggedEntity(Shape):
    """From character `start` to before `end`; `score`: the mean probability of its words' tags."""

    type: str
    start: int
    end: int
    text: str
    score: float


class Tagged(Shape):
    """A text's entities, in their order."""

    index: int
    entities: list[TaggedEntity]


class TagReply(Shape):
    """The answer of /v1/tag."""

    object: Literal["list"]
    model: str
    data: list[Tagged]
    usage: EncoderUsage


class Model(Shape):
    """The model that is served: what it is for, how many tokens it sees and how many may be asked for (null: it writes
    none), and the names of its labels, if it has some.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: Literal["chat", "completion", "embeddings", "classify", "tag"]
    context: int
    max_tokens: int | None
    labels: list[str] | None


class Models(Shape):
    """The answer of /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Health(Shape):
    """The answer of /health."""

    status: Literal["ok"]
    model: str


class Fault(Shape):
    """What was wrong; `param`: in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class FaultReply(Shape):
    """Every answer that is an error."""

    error: Fault


def json_of(shape: Shape) -> bytes:
    """As JSON, without fields that were not given."""
    return shape.model_dump_json(exclude_unset=True).encode()


def logprob(value: float) -> float:
    """A logarithm of a probability that JSON has a number for."""
    return value if math.isfinite(value) else LEAST


def bytes_of(text: str) -> list[int] | None:
    """A token's text in UTF-8, unless it is a part of a character."""
    return None if "\ufffd" in text else list(text.encode())


def likeliest(told: Sequence[tuple[int, str, float]]) -> list[TokenLogprob]:
    """The alternatives of a token."""
    return [TokenLogprob(token=text, logprob=logprob(value), bytes=bytes_of(text)) for _, text, value in told]
