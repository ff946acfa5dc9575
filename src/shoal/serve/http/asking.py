"""From what clients ask to what an engine is asked: prompts as tokens, within the limits, a `Request` for each choice."""

import secrets
from collections.abc import Sequence

from shoal.data.chat_template import Role, Turn
from shoal.serve.http.errors import ApiError
from shoal.serve.http.limits import Limits
from shoal.serve.http.requests import (
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
    Writing,
    listed,
)
from shoal.serve.http.served import Served, Writer
from shoal.serve.request import Constraint, Request
from shoal.serve.sampling import Sampling

COMPLETION_TOKENS = 16
"""How many tokens a completion has where its request doesn't say, as at OpenAI."""


def writer_of(served: Served) -> Writer:
    """The engine; `ApiError` where the model writes nothing."""
    if served.writer is None:
        where = {"classify": "/v1/classify and /v1/embeddings", "tag": "/v1/tag and /v1/embeddings"}
        raise ApiError(
            400,
            f"'{served.name}' is an encoder, which writes no text; ask it by {where.get(served.kind, '/v1/embeddings')}",
            param="model",
            code="wrong_kind",
        )
    return served.writer


def chat_prompts(served: Served, asked: ChatRequest) -> list[list[int]]:
    """The one prompt: the dialogue as tokens, ready for a reply."""
    writer = writer_of(served)
    if writer.template is None:
        raise ApiError(
            400,
            f"'{served.name}' has no chat template: it goes on with texts, by /v1/completions, and has not learnt to reply. "
            "Where it has, start the server with --chat-template FILE",
            param="model",
            code="no_chat_template",
        )
    roles: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
    turns = [Turn(roles[message.role], message.text) for message in asked.messages]
    return [writer.template.prompt(turns, "messages").tolist()]


def completion_prompts(served: Served, asked: CompletionRequest) -> list[list[int]]:
    """Each prompt's tokens; one without any is a text's beginning."""
    writer = writer_of(served)
    if not (prompts := listed(asked.prompt)):
        raise ApiError(400, "prompt: no prompts", param="prompt")
    tokenizer = writer.tokenizer
    tokens: list[list[int]] = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            if not 0 <= min(prompt) <= max(prompt) < tokenizer.vocabulary:
                raise ApiError(400, f"prompt: tokens are numbers from 0 to {tokenizer.vocabulary - 1}", param="prompt")
            tokens.append(prompt)
        else:
            tokens.append(list(writer.encode(prompt)) or [tokenizer.end_of_text])
    return tokens


def echoed(served: Served, asked: CompletionRequest) -> list[str]:
    """The prompts as texts, where choices are to begin with them."""
    if not asked.echo:
        return []
    tokenizer = writer_of(served).tokenizer
    return [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in listed(asked.prompt)]


def check_completion(asked: CompletionRequest) -> None:
    """`ApiError` for what can't be together."""
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise ApiError(400, "best_of: accepted is the value of n, as all choices are returned", param="best_of")
    if asked.echo and asked.logprobs is not None:
        raise ApiError(400, "logprobs: of an echoed prompt's tokens there are none", param="logprobs")


def engine_requests(
    served: Served, limits: Limits, asked: Writing, prompts: Sequence[list[int]], tokens: int, alternatives: int | None
) -> list[Request]:
    """A request for each choice of each prompt, in that order; `ApiError` for what is beyond the limits."""
    n = asked.n or 1
    most_texts = min(limits.texts, writer_of(served).slots + limits.queue)
    if len(prompts) * n > most_texts:
        raise ApiError(400, f"n: {len(prompts)} prompts times {n} choices are more than {most_texts} texts", param="n")
    most_prompt = min(limits.prompt or served.context, served.context)
    for prompt in prompts:
        if len(prompt) > most_prompt:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens; accepted are up to {most_prompt}, in a context of {served.context}",
                code="context_length_exceeded",
            )
    most_tokens = limits.tokens or served.context
    if tokens > most_tokens:
        raise ApiError(400, f"max_tokens: {tokens} is more than the {most_tokens} that may be asked for", param="max_tokens")
    seed = secrets.randbits(62) if asked.seed is None else asked.seed
    stop = tuple(listed(asked.stop)) if asked.stop else ()
    sampling, constraint = sampling_of(asked), constraint_of(asked.response_format)
    return [
        Request(tuple(prompt), tokens, sampling, seed + choice, stop, alternatives, constraint)
        for prompt in prompts
        for choice in range(n)
    ]


def reply_tokens(served: Served, limits: Limits, asked: ChatRequest) -> int:
    """How long a reply may be: as asked, else as long as there is room."""
    if asked.max_completion_tokens is not None:
        return asked.max_completion_tokens
    return asked.max_tokens if asked.max_tokens is not None else limits.tokens or served.context


def reply_alternatives(asked: ChatRequest) -> int | None:
    """How many likeliest tokens are told beside each; `ApiError` where their number is without what it belongs to."""
    if asked.top_logprobs and not asked.logprobs:
        raise ApiError(400, "top_logprobs: is for requests with logprobs: true", param="top_logprobs")
    return (asked.top_logprobs or 0) if asked.logprobs else None


def sampling_of(asked: Writing) -> Sampling:
    """How tokens are drawn: OpenAI's defaults, not Shoal's."""
    given = {
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
    }
    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def constraint_of(wanted: ResponseFormat | None) -> Constraint | None:
    """What the text must be."""
    if isinstance(wanted, JsonSchemaFormat):
        return Constraint("json_schema", wanted.json_schema.content)
    if isinstance(wanted, JsonObjectFormat):
        return Constraint("json_schema", {"type": "object"})
    return None
