"""The process of a server: its socket, its connections' patience, and its end.

uvicorn speaks HTTP, by h11. Added to it are time-outs for clients that send their headers slowly, or leave unread what they
asked for: either would hold a connection for ever. SIGTERM, or SIGINT, lets nobody in any more and ends when all answers are
finished; a second SIGINT ends at once.
"""

import asyncio
import gc
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from shoal.core.errors import InputError
from shoal.serve.http.errors import error_body
from shoal.serve.http.limits import Limits

LONGEST_HEAD = 32 << 10
"""Bytes of a request's headers."""

SWITCH_SECONDS = 0.0005
"""After which Python's lock goes from the loop's thread to the engine's, which computes a token in not much more."""


class PatientProtocol(H11Protocol):
    """A connection that is closed when its client neither sends nor reads what it has to."""

    limits: Limits
    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request's headers are waited for."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """From a request's first byte on its headers are waited for, until they are there."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting_for_head()
        elif self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """The next request may have begun already."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before and self.conn.trailing_data[0]:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._stop_waiting_for_head()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More is unread than there is room for."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.stalled_seconds, self._give_up)

    def resume_writing(self) -> None:
        """The client reads."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an answer all the same."""
        body = json.dumps(error_body(400, "this is not HTTP, or its headers are too long", code="invalid_http")).encode()
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        )
        self.transport.write(head % len(body) + body)
        self.transport.close()

    def _wait_for_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.limits.head_seconds, self._give_up)

    def _stop_waiting_for_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_waiting_for_reader(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _give_up(self) -> None:
        self.transport.abort()


class StoppableServer(uvicorn.Server):
    """Tells when it is ready, and keeps which signal ended it, instead of raising that again."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready
        self.switch_seconds = sys.getswitchinterval()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        # what is here now stays: looking through it for what could be freed takes a tenth of a second, again and again
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(SWITCH_SECONDS)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; where the end is forced, what that breaks off is told to nobody."""
        await super().shutdown(sockets)
        gc.unfreeze()
        sys.setswitchinterval(self.switch_seconds)
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals ask for the end; in another thread than the main one, only `should_exit` does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether somebody pressed Ctrl-C."""
        return signal.SIGINT in self._captured_signals


def bind(host: str, port: int) -> socket.socket:
    """A socket on which nothing listens yet; `InputError` where there can't be one.

    Before the model is read: who has no place to serve it should not wait for it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(0)  # two may be bound to a port of which neither listens
        return taken
    except (OSError, OverflowError, UnicodeError) as error:  # the last: of a name that no host can have
        taken.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"can't listen on {host}, port {port}: {reason}; choose another by --host or --port") from None


def make_server(app: ASGIApp, limits: Limits, ready: Callable[[], None]) -> StoppableServer:
    """A server to be run on a socket (`server.run([socket])`); `ready` is called when it answers."""
    protocol: Any = type("Protocol", (PatientProtocol,), {"limits": limits})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=limits.grace_seconds,  # type: ignore[arg-type]
        h11_max_incomplete_event_size=LONGEST_HEAD,
        proxy_headers=False,
    )
    return StoppableServer(config, ready)
