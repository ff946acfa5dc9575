"""The routes of an encoder: /v1/embeddings, and /v1/classify and /v1/tag where it was fine-tuned to that."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shoal.core.errors import InputError
from shoal.data.examples.rows import Piece
from shoal.serve.embedding import Embedder
from shoal.serve.http.errors import ApiError
from shoal.serve.http.replies import (
    Classified,
    ClassifyReply,
    Embedding,
    EmbeddingReply,
    EncoderUsage,
    Shape,
    Tagged,
    TaggedEntity,
    TagReply,
    json_of,
)
from shoal.serve.http.requests import ClassifyRequest, EmbeddingRequest, TagRequest, listed
from shoal.serve.http.routes import FAULTS, JsonRoute
from shoal.serve.http.served import Kind
from shoal.serve.http.service import Service, unless_left
from shoal.serve.labelling import LabelledText, Labeller

Result = TypeVar("Result")


def label_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute, tags=["encoders"])

    @router.post("/v1/embeddings", responses={200: {"model": EmbeddingReply}, **FAULTS})
    async def embeddings(request: Request, asked: EmbeddingRequest) -> Response:
        """Sum texts up, as vectors of length 1."""
        service.check_model(asked.model)
        embedder = _embedder(service)
        if asked.dimensions not in (None, embedder.dim):
            raise ApiError(400, f"dimensions: the model's vectors have {embedder.dim}", param="dimensions")
        inputs = _inputs(service, asked.input)
        pieces = await asyncio.to_thread(lambda: [_piece(embedder, text, number) for number, text in enumerate(inputs)])
        usage = _usage(service, [len(piece.tokens) for piece in pieces])
        vectors = await _each(service, request, pieces, lambda its: list(embedder.embed(its)))
        as_text = asked.encoding_format == "base64"
        data = [
            Embedding(
                object="embedding",
                index=number,
                embedding=base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
            )
            for number, vector in enumerate(vectors)
        ]
        return _json(EmbeddingReply(object="list", model=service.served.name, data=data, usage=usage))

    @router.post("/v1/classify", responses={200: {"model": ClassifyReply}, **FAULTS})
    async def classify(request: Request, asked: ClassifyRequest) -> Response:
        """Tell labels of texts, or of pairs of texts."""
        service.check_model(asked.model)
        labeller = _labeller(service, "classify")
        inputs = _inputs(service, asked.input)
        seconds = listed(asked.input_b) if asked.input_b is not None else [None] * len(inputs)
        if len(seconds) != len(inputs):
            raise ApiError(400, f"input_b: {len(seconds)} texts, and {len(inputs)} inputs to go with", param="input_b")
        texts, usage, outputs = await _labelled(service, request, labeller, inputs, seconds)
        found = labeller.classify(texts, outputs)
        data = [
            Classified(
                index=number,
                label=said.label,
                labels=said.labels,
                scores=said.probabilities,
                truncated=text.cut,
            )
            for number, (text, said) in enumerate(zip(texts, found, strict=True))
        ]
        return _json(ClassifyReply(object="list", model=service.served.name, data=data, usage=usage))

    @router.post("/v1/tag", responses={200: {"model": TagReply}, **FAULTS})
    async def tag(request: Request, asked: TagRequest) -> Response:
        """Find entities in texts."""
        service.check_model(asked.model)
        labeller = _labeller(service, "tag")
        inputs = _inputs(service, asked.input)
        texts, usage, outputs = await _labelled(service, request, labeller, inputs, [None] * len(inputs))
        found = await asyncio.to_thread(labeller.tag, texts, outputs)
        data = [
            Tagged(index=number, entities=[TaggedEntity(**vars(entity)) for entity in entities])
            for number, entities in enumerate(found)
        ]
        return _json(TagReply(object="list", model=service.served.name, data=data, usage=usage))

    return router


def _embedder(service: Service) -> Embedder:
    if service.served.embedder is None:
        message = f"'{service.served.name}' writes texts; embeddings are told by encoders"
        raise ApiError(400, message, param="model", code="wrong_kind")
    return service.served.embedder


def _labeller(service: Service, kind: Kind) -> Labeller:
    served = service.served
    if served.labeller is None or served.kind != kind:
        message = f"'{served.name}' was not fine-tuned for the task '{kind}'; it is served for: {served.kind}"
        raise ApiError(400, message, param="model", code="wrong_kind")
    return served.labeller


def _inputs(service: Service, given: Any) -> list[Any]:
    inputs = listed(given)
    if not 1 <= len(inputs) <= service.limits.texts:
        raise ApiError(400, f"input: {len(inputs)} texts; accepted are 1 to {service.limits.texts}", param="input")
    return inputs


def _piece(embedder: Embedder, given: Any, number: int) -> Piece:
    try:
        return embedder.encode(given) if isinstance(given, str) else embedder.frame(given)
    except InputError as error:
        raise ApiError(400, f"input[{number}]: {error}", param="input") from None


async def _labelled(
    service: Service, request: Request, labeller: Labeller, inputs: Sequence[Any], seconds: Sequence[Any]
) -> tuple[list[LabelledText], EncoderUsage, list[Any]]:
    """The texts as their task reads them, what that is, and what the model tells of each of their pieces."""
    pairs = [(str(text), None if second is None else str(second)) for text, second in zip(inputs, seconds, strict=True)]

    def read() -> list[LabelledText]:
        return [labeller.read(text, second, f"input[{number}]") for number, (text, second) in enumerate(pairs)]

    texts = await asyncio.to_thread(read)
    usage = _usage(service, [text.tokens for text in texts])
    return texts, usage, await _each(service, request, [piece for text in texts for piece in text.pieces], labeller.outputs)


async def _each(
    service: Service,
    request: Request,
    pieces: Sequence[Piece],
    work: Callable[[Sequence[Piece]], Sequence[Result]],
) -> list[Result]:
    """A result for each piece, computed in the encoder's thread, as long as the client waits."""
    computed = service.encoding.each(pieces, lambda piece: len(piece.tokens), work, service.deadline())
    results = await unless_left(request.receive, computed)
    service.metrics.prompt_tokens.inc(sum(len(piece.tokens) for piece in pieces))
    return results


def _usage(service: Service, sizes: Sequence[int]) -> EncoderUsage:
    """What was read; `ApiError` for a text that is beyond the limit."""
    most = service.limits.prompt
    for number, size in enumerate(sizes):
        if most and size > most:
            raise ApiError(400, f"input[{number}]: {size} tokens; accepted are up to {most}", param="input")
    return EncoderUsage(prompt_tokens=sum(sizes), total_tokens=sum(sizes))


def _json(reply: Shape) -> Response:
    return Response(json_of(reply), media_type="application/json")
