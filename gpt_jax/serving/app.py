"""The application: which path does what, who may ask, and what an error becomes."""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpt_jax.serving.errors import ApiError
from gpt_jax.serving.guard import NeedsKey, SameSite
from gpt_jax.serving.handlers import Handlers
from gpt_jax.serving.library import Library


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": "2"} if error.status == 429 else None
    return JSONResponse(error.body, error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown path, or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is no {request.url.path}: see docs/serving.md for the paths",
        405: f"{request.method} is not allowed here: use another method",
    }
    body = ApiError(error.status_code, messages.get(error.status_code, error.detail)).body
    return JSONResponse(body, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads this answer; 499 is the usual status for it."""
    return Response(status_code=499)


async def _fault(request: Request, error: Exception) -> Response:
    """Our own fault. The server prints the traceback; the client gets one sentence."""
    return JSONResponse(ApiError(500, "the server failed: its terminal says why").body, 500)


def make_app(
    library: Library,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    key: str = "",
    on_ready: Callable[[], None] = lambda: None,
) -> Starlette:
    """The server as an ASGI application.

    Args:
      library: the runs to serve.
      hosts, origins: see `guard.SameSite`.
      key: what clients must send as `Authorization: Bearer KEY`; empty = nothing.
      on_ready: called when the server starts to answer.
    """
    handlers = Handlers(library)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        on_ready()
        yield
        library.close()

    routes = [
        Route("/", handlers.page),
        Route("/health", handlers.health),
        Route("/v1/models", handlers.models),
        Route("/v1/models/{name}", handlers.model),
        Route("/v1/completions", handlers.completions, methods=["POST"]),
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
        Route("/api/runs", handlers.runs),
        Route("/api/runs/{name}", handlers.progress),
        Route("/api/inspect", handlers.inspect, methods=["POST"]),
        Route("/api/attention", handlers.attention, methods=["POST"]),
    ]
    middleware = [Middleware(SameSite, hosts=hosts, origins=origins)]
    if origins:
        methods, headers = ["GET", "POST"], ["*"]
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=methods,
                allow_headers=headers,
            )
        )
    if key:
        middleware.append(Middleware(NeedsKey, key=key))
    errors: dict[Any, Any] = {
        ApiError: _api_error,
        ClientDisconnect: _gone,
        HTTPException: _http_error,
        Exception: _fault,
    }
    return Starlette(
        routes=routes, middleware=middleware, exception_handlers=errors, lifespan=lifespan
    )
