"""The application that callers meet: routes, errors in one envelope, health, metrics. It knows nothing of Ray."""

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Match

from p2e import __version__
from p2e.errors import P2EError
from serve.answers import Health, Models
from serve.contract import describe, documented
from serve.effect_routes import EffectMaker, effect_routes
from serve.errors import ApiError, Internal
from serve.keys import Unauthorised
from serve.metrics import Counted, metrics_text
from serve.page import page_routes
from serve.schemas import Unprocessable
from serve.services import NotReady, Services
from serve.video_routes import video_routes

__all__ = ["build_app"]

TEXT_FORMAT = "text/plain; version=0.0.4"
METRICS = {200: {"description": "What has been counted.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
LOG = logging.getLogger("p2e.gateway")


def build_app(services: Services) -> FastAPI:
    """The gateway over stores and a predictor."""
    app = FastAPI(title="p2e", version=__version__, description="Effects in, LoRAs and videos out.")
    app.state.keys, maker = services.keys, EffectMaker(services)
    app.include_router(effect_routes(services, maker))
    app.include_router(video_routes(services, maker))
    app.include_router(page_routes(services.settings))
    app.add_middleware(Counted, counters=services.counters)
    _answer_errors(app)
    describe(app)

    @app.get("/v1/models", tags=["models"], **documented("List models", Models, public=True))
    def models() -> dict[str, Any]:
        """What is served."""
        model = {"id": services.settings.model, "object": "model", "created": 0, "owned_by": "p2e"}
        return {"object": "list", "data": [model]}

    @app.get("/healthz", tags=["health"], **documented("Whether it runs", Health, public=True))
    async def healthz() -> dict[str, str]:
        """For probes: this process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], **documented("Whether it is ready", Health, errors=[NotReady], public=True))
    async def readyz() -> dict[str, str]:
        """For probes: weights are loaded, and the database answers."""
        await services.predictor.identity()
        await run_in_threadpool(services.jobs.depth)
        return {"status": "ready"}

    @app.get("/metrics", tags=["health"], **documented("Metrics", answers=METRICS, public=True))
    def prometheus() -> PlainTextResponse:
        """For Prometheus, in its text format."""
        return PlainTextResponse(metrics_text(services.jobs, services.counters), media_type=TEXT_FORMAT)

    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(_request: Request, error: ApiError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def wrong(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = str(first["loc"][-1]) if first["loc"] else None
        return _answer(Unprocessable(f"{place}: {first['msg']}", param=place))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        answer = ApiError(str(error.detail))
        answer.status, answer.code = error.status_code, str(error.detail).lower().replace(" ", "_")
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if error.status_code == 405:
            headers["allow"] = ", ".join(sorted(_methods(request)))
        return _answer(answer, headers)

    @app.exception_handler(Exception)
    async def unknown(_request: Request, error: Exception) -> JSONResponse:
        # A P2EError's line may name a path of the server.
        LOG.error("a request failed: %s", error, exc_info=None if isinstance(error, P2EError) else error)
        return _answer(Internal("something went wrong on the server; it has been logged"))


def _methods(request: Request) -> set[str]:
    """What a path can be asked with; Starlette names the methods of its first route alone."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in routes for method in getattr(route, "methods", None) or ()}


def _answer(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    headers = headers or {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorised):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.envelope, error.status, headers)
