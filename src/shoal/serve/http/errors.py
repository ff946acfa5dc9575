"""Every error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

400 a request that can't be served       401 no key, or a wrong one       404 no such path or model
403 a host name that isn't this server's 405 another method is meant      408 the body doesn't come
413 a body that is too long              415 a body that isn't JSON       429 the queue is full
500 a fault of the server's              503 too much at once, too long, or the server stops
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from shoal.core.errors import InputError
from shoal.serve.http.limits import RETRY_SECONDS
from shoal.serve.request import ClosedError, FullError

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""Kinds of error by status; all others are `invalid_request_error`."""

RETRY = {"Retry-After": str(RETRY_SECONDS)}


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code


class ClientLeftError(ApiError):
    """Nobody waits for the answer any more; 499 is what logs and metrics call it."""

    def __init__(self) -> None:
        super().__init__(499, "the client has left")


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The content of an error."""
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: StarletteHTTPException) -> JSONResponse:
    """An error as an answer."""
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    body = error_body(error.status_code, str(error.detail), param, code)
    return JSONResponse(body, error.status_code, headers=error.headers)


def overloaded(message: str) -> ApiError:
    """There is too much to do now."""
    return ApiError(503, message, code="overloaded", headers=RETRY)


def timed_out() -> ApiError:
    """An answer took too long, and would again: OpenAI's client, which repeats what gets a 503, is asked not to."""
    message = "the answer was not finished in the time that a request may take"
    return ApiError(503, message, code="timeout", headers={"X-Should-Retry": "false"})


def api_error(error: Exception) -> ApiError:
    """What the work's own errors are to a client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClosedError):
        return overloaded(str(error))
    if isinstance(error, FullError):
        return ApiError(429, str(error), code="queue_full", headers=RETRY)
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    raise error


def add_error_handlers(app: FastAPI) -> None:
    """Let all errors of an app have that shape."""
    app.add_exception_handler(StarletteHTTPException, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _told)
    app.add_exception_handler(FullError, _told)
    app.add_exception_handler(Exception, _failed)


async def _told(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StarletteHTTPException) and not isinstance(error, ApiError):
        error = _of_the_router(request, error)
    return error_response(api_error(error))


def _of_the_router(request: Request, error: StarletteHTTPException) -> ApiError:
    path = request.url.path
    if error.status_code == 404:
        return ApiError(404, f"there is no {path} here; /docs tells what there is", code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return ApiError(405, f"{path} is not for {request.method}, but for {allowed}", headers=error.headers)
    return ApiError(error.status_code, str(error.detail), headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # where a field may be of several types, each says what it lacks: the one that went deepest is the one that was meant
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    name = _place(first["loc"][1:])
    message = f"{name}: {first['msg']}" if name else f"the body: {first['msg']}"
    return error_response(ApiError(400, message, param=name or None, code="invalid_value"))


def _place(parts: Sequence[Any]) -> str:
    """`messages[0].role` for its parts, without those that name a member of a union of types."""
    name = ""
    for part in parts:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "list", "float"):
            name += f".{part}" if name else part
    return name


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours: the log has it, and the client is told no more than that."""
    logging.getLogger("shoal.serve").debug("a request failed", exc_info=error)
    return error_response(ApiError(500, "the server failed at this request; its log says why"))
