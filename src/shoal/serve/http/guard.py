"""Who may come in, and with how much: checked before any handler runs, and counted after all of them.

A request's body is read here, whole, within its limits of size and time; handlers get it from memory. So a client that sends
slowly, or too much, costs a connection and nothing else.

Without a key the server is for this machine alone, and every web page that its user opens runs on this machine: such a page
can reach 127.0.0.1 by a name of its own that resolves there (DNS rebinding). So without a key only names of this machine are
answered.
"""

import asyncio
import hmac
import ipaddress
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.serve.http.errors import ApiError, ClientLeftError, error_response, overloaded
from shoal.serve.http.service import Service

OPEN = frozenset({"/", "/health", "/docs", "/openapi.json"})
"""Paths that need no key, beside the page's files: they tell nothing of the model, or nobody's texts."""

BACKGROUND = frozenset({"/health", "/metrics"})
"""Paths that are answered however much there is to do."""


@dataclass(frozen=True)
class Access:
    """`key`: what every request must bring (empty: none is asked for); `files`: paths of the page."""

    key: str = ""
    files: frozenset[str] = frozenset()


class Guard:
    """Around the app."""

    def __init__(self, app: ASGIApp, service: Service, access: Access, paths: frozenset[str]) -> None:
        """`paths`: those that the app has, by which requests are counted."""
        self.app, self.service, self.access, self.paths = app, service, access, paths
        self.key = access.key.encode()
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it in, or answer with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), ClientLeftError().status_code  # unless something is answered
        path = scope["path"] if scope["path"] in self.paths else "other"
        metrics = self.service.metrics

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        self.open += 1
        metrics.open.set(self.open)
        try:
            await self._let_in(scope, receive, send_noted)
        except (
            asyncio.CancelledError
        ):  # the server ends, and has waited for this long enough; nobody is to hear of it but the client
            if status == ClientLeftError().status_code:
                stopped = overloaded("the server stops, and has given up this answer")
                await error_response(stopped)(scope, receive, send_noted)
        finally:
            self.open -= 1
            metrics.open.set(self.open)
            metrics.requests.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - began)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            path = scope["path"]
            self._check(path, headers)
            # who brings no key is not waited for: what is open to all takes no body
            body = b"" if self._is_open(path) else await self._body(headers, receive)
        except ClientLeftError:
            return
        except ApiError as error:
            # what is left of the body is not waited for
            error.headers = {**(error.headers or {}), "Connection": "close"}
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, replayed(body, receive), send)

    def _check(self, path: str, headers: Headers) -> None:
        """`ApiError` for who may not come in."""
        if not self.key:
            name = headers.get("host", "").lower()
            if not is_local(_without_port(name)):
                raise ApiError(403, f"this server answers to localhost, not to '{name}', unless it has an --api-key")
        elif not self._is_open(path):
            kind, _, given = headers.get("authorization", "").partition(" ")
            # bytes, as they came: a header is Latin-1
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self.key):
                told = "a wrong API key" if given else "no API key"
                raise ApiError(
                    401,
                    f"{told}; give the server's: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        most = self.service.limits.requests
        if self.open > most and path not in BACKGROUND:
            raise overloaded(f"{most} requests are open already, as many as may")

    def _is_open(self, path: str) -> bool:
        return path in OPEN or path in self.access.files

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """All of it; `ApiError` where it is too long, or does not come."""
        most = self.service.limits.body
        said = headers.get("content-length", "0")
        if said.isdecimal() and int(said) > most:
            raise _too_long(most)
        body = bytearray()
        try:
            async with asyncio.timeout(self.service.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_long(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self.service.limits.body_seconds
            raise ApiError(408, f"the body was not there after {seconds:g} s", code="timeout") from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """What an app receives: the body that was read, and then whatever comes."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def is_local(host: str) -> bool:
    """Whether it is a name, or an address, by which this machine alone is meant."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_port(name: str) -> str:
    """The name, or address, that a Host header has."""
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than the {most} bytes that are accepted", code="body_too_long")
