"""What the browser is told: the page, and what it asks for. Nothing here changes anything, and nothing comes from outside.

Names and texts of runs are whatever somebody wrote into files. They leave as JSON, the page puts them in as text, and the
policy that goes with every answer forbids scripts and styles of any other place, and of any text.
"""

import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from shoal.board.board import Board, Cursor
from shoal.core.figures import PLOTS, RANK_PLOTS

PAGE = Path(str(files("shoal.board"))) / "page"

HOSTS = ["127.0.0.1", "localhost", "[::1]"]
"""Names by which the page may be asked for: a site that gives this machine another name gets nothing."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A report is a file of its own, with styles inside: it may look as it likes, and do nothing."""

Whole = Annotated[int, Field(ge=0, lt=2**53)]


class Known(BaseModel):
    """What a page has of a run."""

    generation: Whole
    training: tuple[Annotated[int, Field(ge=1, lt=2**53)], Whole]
    evaluations: tuple[Annotated[int, Field(ge=1, lt=2**53)], Whole]

    def cursor(self) -> Cursor:
        """As the board takes it."""
        return Cursor(self.generation, self.training, self.evaluations)


class Ascii(JSONResponse):
    """JSON in ASCII: texts may hold what is no Unicode."""

    def render(self, content: Any) -> bytes:
        """The answer's bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def make_app(board: Board) -> FastAPI:
    """The page of a board's runs."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, default_response_class=Ascii)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.middleware("http")(_with_headers)

    @app.post("/api/news")
    def news(known: Annotated[dict[str, Known | None], Body(max_length=200)]) -> Response:
        return Ascii(board.news({id: None if one is None else one.cursor() for id, one in known.items()}))

    @app.get("/api/plots")
    def plots() -> Response:
        return Ascii(
            {
                "plots": [dataclasses.asdict(plot) for plot in PLOTS],
                "ranks": [dataclasses.asdict(plot) for plot in RANK_PLOTS],
            }
        )

    @app.get("/api/part")
    def part(
        run: str,
        axis: Literal["step", "tokens", "seconds"],
        start: Annotated[float, Query(allow_inf_nan=False)],
        end: Annotated[float, Query(allow_inf_nan=False)],
    ) -> Response:
        with _known_run():
            return Ascii(board.part(run, axis, start, end))

    @app.get("/api/run")
    def run(run: str) -> Response:
        with _known_run():
            return Ascii(board.describe(run))

    @app.get("/report/{run}")
    def report(run: str) -> Response:
        with _known_run():
            path = board.report(run)
        if not path.is_file():
            raise HTTPException(404, "this run has no report.html: a run writes it when it has finished")
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


@contextmanager
def _known_run() -> Iterator[None]:
    """A run that is not there, or no longer, is told as such."""
    try:
        yield
    except KeyError:
        raise HTTPException(404, "no such run: its folder is gone") from None


async def _with_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
