"""The web application of one model: routes, errors, and the guard around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from shoal import __version__
from shoal.serve.http.about import about_router, add_page, page_files
from shoal.serve.http.errors import add_error_handlers
from shoal.serve.http.guard import Access, Guard
from shoal.serve.http.labels import label_router
from shoal.serve.http.limits import Limits
from shoal.serve.http.served import Served
from shoal.serve.http.service import Service
from shoal.serve.http.writing import writing_router

DESCRIPTION = """\
OpenAI's interface to one model, and what fine-tuned encoders tell. Every error is `{"error": {"message", "type", "param",
"code"}}`. A server with a key wants `Authorization: Bearer KEY`."""


def build_app(served: Served, limits: Limits, key: str = "") -> ASGIApp:
    """The application; when it ends, so does the model's engine. `key`: what requests must bring (empty: none)."""
    service = Service.of(served, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.close)

    app = FastAPI(
        title="Shoal",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    add_error_handlers(app)
    routers = (about_router(service), writing_router(service), label_router(service))
    for router in routers:
        app.include_router(router)
    add_page(app)
    files = frozenset(page_files())
    paths = {route.path for router in routers for route in router.routes if isinstance(route, APIRoute)}
    return Guard(app, service, Access(key, files), files | paths | {"/docs", "/openapi.json"})
