"""How the server's routes read a body: JSON in UTF-8, without half characters, whatever it is for."""

from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute

from shoal.serve.http.errors import ApiError
from shoal.serve.http.replies import FaultReply


class JsonRequest(Request):
    """A request whose body is JSON."""

    async def json(self) -> Any:
        """The body; `ApiError` says where it is something else."""
        body = await self.body()
        try:
            return pydantic_core.from_json(body)  # NaN is for the fields to refuse, which have a name
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


class JsonRoute(APIRoute):
    """A route whose body is JSON, and says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, which gets a `JsonRequest`."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if self.body_field is not None and kind != "application/json":
                raise ApiError(415, "the body must be JSON: Content-Type: application/json", code="unsupported_media_type")
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


FAULTS: dict[int | str, dict[str, Any]] = {
    "default": {"description": "An error", "model": FaultReply},
    422: {"description": "Not used: what is wrong with a request is told with 400", "model": FaultReply},
}
