"""The routes of a decoder: /v1/chat/completions and /v1/completions, whole or as a stream of events."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from shoal.serve.http import asking
from shoal.serve.http.errors import ApiError, ClientLeftError, error_body
from shoal.serve.http.limits import Limits
from shoal.serve.http.replies import ChatReply, CompletionReply, Shape, json_of
from shoal.serve.http.requests import ChatRequest, CompletionRequest, Writing
from shoal.serve.http.routes import FAULTS, JsonRoute
from shoal.serve.http.service import Service, unless_left
from shoal.serve.http.telling import ChatTelling, CompletionTelling, Telling, usage_of
from shoal.serve.http.texts import Texts

EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"
ALIVE = b": alive\n\n"
"""A comment, which no client shows: what lies between would take a connection without a sign for dead."""

BRIEF = 4000
"""Bytes of a request that is read as soon as it would be handed to another thread."""


class EventStream(StreamingResponse):
    """Events, and what is to be done when the last is sent, or the client has left.

    Without the task group of its base, which costs a small model as much as some tokens.
    """

    media_type = EVENTS

    def __init__(self, events: AsyncIterator[bytes], after: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            with contextlib.suppress(ClientLeftError):
                await unless_left(receive, self.stream_response(send))
        finally:
            self.after()


def writing_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute, tags=["texts"])

    @router.post("/v1/chat/completions", responses=_responses(ChatReply))
    async def chat(request: Request, asked: ChatRequest) -> Response:
        """Reply to a dialogue."""
        service.check_model(asked.model)
        telling = ChatTelling(service.served.name, asking.reply_alternatives(asked), _with_usage(asked))
        tokens = asking.reply_tokens(service.served, service.limits, asked)
        return await _answer(service, request, asked, telling, tokens, lambda: asking.chat_prompts(service.served, asked))

    @router.post("/v1/completions", responses=_responses(CompletionReply))
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        """Go on with texts."""
        service.check_model(asked.model)
        asking.check_completion(asked)
        telling = CompletionTelling(service.served.name, asked.logprobs, asked.n or 1, _with_usage(asked))

        def prompts() -> list[list[int]]:
            tokens = asking.completion_prompts(service.served, asked)
            telling.echo = asking.echoed(service.served, asked)
            return tokens

        tokens = asked.max_tokens or min(asking.COMPLETION_TOKENS, service.limits.tokens or asking.COMPLETION_TOKENS)
        return await _answer(service, request, asked, telling, tokens, prompts)

    return router


async def _answer(
    service: Service,
    request: Request,
    asked: Writing,
    telling: Telling,
    tokens: int,
    lay_out: Callable[[], list[list[int]]],
) -> Response:
    """The texts that are asked for; `tokens`: of each, at most; `lay_out`: gives the prompts."""
    began = time.perf_counter()
    served, limits = service.served, service.limits
    writer = asking.writer_of(served)
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options: is for requests with stream: true", param="stream_options")
    observe = service.metrics.first_token.observe
    constrained = asking.constraint_of(asked.response_format) is not None
    texts = Texts(service.deadline(), lambda: observe(time.perf_counter() - began), constrained)

    def submit() -> list[list[int]]:
        prompts = lay_out()
        requests = asking.engine_requests(served, limits, asked, prompts, tokens, telling.alternatives)
        texts.submit(writer.engine, requests)
        return prompts

    try:
        # a long prompt, or a schema, takes a while to be read: the loop goes on meanwhile
        brief = len(await request.body()) <= BRIEF and not constrained
        prompts = submit() if brief else await asyncio.to_thread(submit)
    except BaseException:
        texts.close()
        raise

    def close() -> None:
        texts.close()
        usage = usage_of(prompts, texts.written)
        service.metrics.prompt_tokens.inc(usage.prompt_tokens)
        service.metrics.reused_tokens.inc(usage.prompt_tokens_details.cached_tokens)
        service.metrics.written_tokens.inc(usage.completion_tokens)

    if asked.stream:
        return EventStream(_events(texts, telling, prompts, limits), close)
    try:
        written = await unless_left(request.receive, texts.whole())
    finally:
        close()

    def told() -> bytes:
        return json_of(telling.reply(written, usage_of(prompts, written)))

    # the probabilities of thousands of tokens take seconds to lay out: the loop goes on meanwhile
    reply = told() if telling.alternatives is None else await asyncio.to_thread(told)
    return Response(reply, media_type="application/json")


async def _events(texts: Texts, telling: Telling, prompts: list[list[int]], limits: Limits) -> AsyncIterator[bytes]:
    """The stream: what has gone wrong after it began is told in it, for the status is sent already."""
    opened = (event for number in range(len(texts.written)) for event in telling.opening(number))
    if opening := b"".join(map(_data, opened)):
        yield opening
    try:
        async for batch in texts.batches(limits.event_seconds, limits.quiet_seconds):
            if not batch:
                yield ALIVE
            events = b"".join(_data(event) for number, piece in batch for event in telling.events(number, piece))
            if texts.finished:
                if telling.with_usage:
                    events += _data(telling.closing(usage_of(prompts, texts.written)))
                events += DONE
            if events:
                yield events
    except ApiError as error:
        body = error_body(error.status_code, str(error.detail), error.param, error.code)
        yield f"data: {json.dumps(body)}\n\n".encode()


def _data(event: Shape) -> bytes:
    return b"data: " + json_of(event) + b"\n\n"


def _with_usage(asked: Writing) -> bool:
    return bool(asked.stream and asked.stream_options is not None and asked.stream_options.include_usage)


def _responses(whole: type[Shape]) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI page tells of the answers."""
    stream = {"schema": {"type": "string", "description": "`data: {…}` a line, the last of which is `data: [DONE]`"}}
    return {200: {"description": "The texts, or a stream of events", "model": whole, "content": {EVENTS: stream}}, **FAULTS}
