"""A live page of runs, in your browser: curves, speed, stalls, samples, and what their recipes differ in.

    shoal board
    shoal board runs/demo other/runs --port 8900

Shows runs while they train and when they are over; it only reads. The page is for this machine alone (127.0.0.1); to look
at a machine elsewhere, `ssh -L 8321:127.0.0.1:8321 MACHINE` and open the same address here. Ctrl-C ends it.
"""

import contextlib
import errno
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from shoal.core.errors import InputError
from shoal.core.extras import library

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal board`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """Runs' folders, and folders of runs."""
    port: int = 8321
    """Where it listens (0: any that is free)."""
    json: bool = False
    """Print the address as one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any] | None:
    """Serve the page until Ctrl-C."""
    uvicorn = library("uvicorn", "serve")
    library("fastapi", "serve")
    from shoal.board.app import make_app
    from shoal.board.board import Board

    board = Board(arguments.runs)
    listening = _listen(arguments.port)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    if arguments.json:
        print(json.dumps({"address": address, "runs": len(board.runs)}), flush=True)  # noqa: T201
    else:
        found = f"{len(board.runs):,} run{'s' * (len(board.runs) != 1)}" if board.runs else "no runs yet"
        print(f"{found} in {', '.join(map(str, arguments.runs))}: {address}   (Ctrl-C ends it)", flush=True)  # noqa: T201
    server = uvicorn.Server(
        uvicorn.Config(make_app(board), log_level="warning", lifespan="off", timeout_graceful_shutdown=2)
    )
    with contextlib.suppress(KeyboardInterrupt):  # which is how it is ended
        server.run(sockets=[listening])
    return None


def _listen(port: int) -> socket.socket:
    """A socket that listens on this machine alone; `InputError` where it can't."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OverflowError):
            raise InputError(f"--port is {port}; accepted: 0 to 65535") from None
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"--port {port}: something listens there already, perhaps another board; choose another, or 0"
            ) from None
        raise InputError(f"--port {port}: {error.strerror}") from None
    return listening
