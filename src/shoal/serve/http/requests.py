"""What clients may ask, field by field: OpenAI's requests, and those of labels.

Types are strict, and an unknown field is an error that names it. A field of OpenAI's that would change the answer, and that
Shoal has nothing for, is accepted only where it says "no"; what is there for OpenAI's own books (`user`, `store`, …) is
accepted and has no effect. Shoal's own additions are `top_k`, `min_p` and `repetition_penalty`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Most = 20
"""Alternatives of a token that may be asked for, as in OpenAI's chat interface."""

MOST_FIELDS = 100
"""Of an object, more than any has: what is wrong with a hundred thousand would take a second to tell."""

LONGEST_SCHEMA = 32 << 10
"""Characters of a schema, as JSON."""

Text = Annotated[str, Field(min_length=1)]
# what is wrong with the first is told: a megabyte of wrong values would be a gigabyte of errors
Texts = Annotated[list[str], Field(fail_fast=True)]
SomeTexts = Annotated[list[Text], Field(fail_fast=True)]
Tokens = Annotated[list[int], Field(min_length=1, fail_fast=True)]
SomeTokens = Annotated[list[Tokens], Field(fail_fast=True)]
Nothing = Annotated[dict[str, Any] | list[Any], Field(max_length=0)] | None
Zero = Annotated[float, Field(ge=0, le=0)] | None


class Strict(BaseModel):
    """An object of which each field is known."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            raise PydanticCustomError("too_many_fields", f"There are {len(given)} fields, most of which nothing is known of")
        return given


class Asked(Strict):
    """What all requests have."""

    model: Text = Field(description="The model's `id`, as /v1/models tells it.")
    user: str | None = None


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = Field(None, description="Let a last event tell how many tokens were used.")
    include_obfuscation: Literal[False] | None = None


class PlainFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Some JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema."""

    name: str
    description: str | None = None
    content: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @field_validator("content")
    @classmethod
    def _short(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Following a schema of thousands of fields takes seconds a token, for which all texts would wait."""
        if len(json.dumps(content)) > LONGEST_SCHEMA:
            raise PydanticCustomError("schema_too_long", f"The schema is longer than {LONGEST_SCHEMA} characters of JSON")
        return content


class JsonSchemaFormat(Strict):
    """JSON as a schema wants it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class Writing(Asked):
    """How a text is written."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0: the likeliest token always.")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, description="Draw from the k likeliest tokens only (0: all).")
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)
    n: int | None = Field(None, ge=1, le=128, description="Choices a prompt.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="The same seed gives the same text.")
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    max_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Nothing = None


class TextPart(Strict):
    """A part of what somebody says."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a dialogue. `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    refusal: str | None = None
    annotations: Nothing = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None

    @property
    def text(self) -> str:
        """What it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Writing):
    """What a reply is asked for with."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=Most)
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(Writing):
    """What a text is to go on from: texts, or tokens."""

    prompt: str | Texts | Tokens | SomeTokens
    logprobs: int | None = Field(None, ge=0, le=Most)
    echo: bool | None = Field(None, description="Begin each choice with its prompt.")
    best_of: int | None = Field(None, ge=1, description="As many as `n`, or nothing.")
    suffix: Annotated[str, Field(max_length=0)] | None = None


class EmbeddingRequest(Asked):
    """Texts, or tokens, to be summed up."""

    input: Text | SomeTexts | Tokens | SomeTokens
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="As many as the model's vectors have, or nothing.")


class ClassifyRequest(Asked):
    """Texts to be labelled; with `input_b`, as many as there are inputs, pairs of texts."""

    input: Text | SomeTexts
    input_b: Text | SomeTexts | None = None


class TagRequest(Asked):
    """Texts in which entities are to be found."""

    input: Text | SomeTexts


def listed(given: Any) -> list[Any]:
    """One input, or several, as a list: a text and a list of tokens are one."""
    if isinstance(given, list) and (not given or isinstance(given[0], str | list)):
        return given
    return [given]
