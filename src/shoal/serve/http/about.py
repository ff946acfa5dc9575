"""The routes that tell of the server itself: its model, its health, its figures, its documentation, and its page."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import jinja2
from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from shoal.serve.http.errors import ApiError
from shoal.serve.http.replies import Health, Model, Models, json_of
from shoal.serve.http.routes import FAULTS, JsonRoute
from shoal.serve.http.service import Service

PAGE = Path(__file__).parents[1] / "page"

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""What a page of ours may do at most, before it says what it needs."""

SECURITY = {
    "Content-Security-Policy": f"{NOTHING}; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""The page's own files alone, which ask this server alone; nothing that a model writes can become a script."""


def about_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute, tags=["server"])
    served = service.served
    model = Model(
        id=served.name,
        object="model",
        created=served.created,
        owned_by="shoal",
        kind=served.kind,
        context=served.context,
        max_tokens=None if served.writer is None else service.limits.tokens or served.context,
        labels=served.labels,
    )

    @router.get("/v1/models", responses={200: {"model": Models}, **FAULTS})
    async def models() -> Response:
        """The model that is served."""
        return Response(json_of(Models(object="list", data=[model])), media_type="application/json")

    @router.get("/v1/models/{name:path}", responses={200: {"model": Model}, **FAULTS})
    async def one_model(name: str) -> Response:
        """The same, asked for by its name."""
        service.check_model(name)
        return Response(json_of(model), media_type="application/json")

    @router.get("/health", responses={200: {"model": Health}, **FAULTS})
    async def health() -> Response:
        """Whether the server answers."""
        return Response(json_of(Health(status="ok", model=served.name)), media_type="application/json")

    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **FAULTS})
    async def metrics() -> Response:
        """Figures, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def page_files() -> dict[str, Path]:
    """The page's files, by the path that each is asked for by."""
    files = {f"/{file.name}": file for file in sorted(PAGE.glob("*.*"))}
    return files | ({"/": files["/index.html"]} if "/index.html" in files else {})


def add_page(app: FastAPI) -> None:
    """The page, and `/docs`, which needs no other server to be shown."""
    for path, file in page_files().items():
        app.add_api_route(path, _sender(file), include_in_schema=False)
    source = (Path(__file__).parent / "docs.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """The OpenAPI description, to be read."""
        policy = {"Content-Security-Policy": f"{NOTHING}; style-src 'unsafe-inline'"}
        return HTMLResponse(template.render(api=app.openapi()), headers=SECURITY | policy)


def _sender(file: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        if not file.exists():
            raise ApiError(404, f"{file.name} is gone")
        return FileResponse(file, headers=SECURITY)

    return send
