"""The routes of the server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gpt_jax.errors import UserError
from gpt_jax.serving import inspection
from gpt_jax.serving.choice import Piece, merged
from gpt_jax.serving.drawing import Drawing, prompt_ids
from gpt_jax.serving.errors import ApiError
from gpt_jax.serving.guard import NeedsKey, SameSite
from gpt_jax.serving.library import Library
from gpt_jax.serving.protocol import Answer
from gpt_jax.serving.requests import (
    MOST_TOKENS,
    Fields,
    TextRequest,
    chat_request,
    completion_request,
    parse_json,
)

MOST_BYTES = 2**20  # Of a body.
BODY_S = 30.0  # Time to send a body.
AT_ONCE, MOST_WAITING = 2, 64  # Computations besides drawing.

T = TypeVar("T")
PAGE = Path(__file__).with_name("page.html")
# The page needs nothing from elsewhere, so nothing from elsewhere is allowed, nor may it be framed.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Computations:
    """Runs what is not drawing in threads, a few at a time. Refuses what would wait too long."""

    def __init__(self) -> None:
        self._threads, self._count = ThreadPoolExecutor(AT_ONCE), 0

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns. Raises ApiError if too many wait already."""
        if self._count >= MOST_WAITING:
            raise ApiError(429, "too many requests wait: try again in a few seconds")
        self._count += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, function, *arguments)
        except UserError as error:
            raise ApiError(400, str(error), param="text") from None
        finally:
            self._count -= 1


class Handlers:
    """What the routes do."""

    def __init__(self, library: Library) -> None:
        self._library, self._computations = library, Computations()

    async def page(self, request: Request) -> Response:
        """GET /"""
        return HTMLResponse(PAGE.read_bytes(), headers=PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        """GET /health"""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": list(map(_model, self._library.names()))})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        name = request.path_params["name"]
        self._library.folder(name)
        return JSONResponse(_model(name))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        return await self._answer(request, completion_request(await _body(request)))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        return await self._answer(request, chat_request(await _body(request)))

    async def _answer(self, request: Request, wanted: TextRequest) -> Response:
        served = await self._library.get(wanted.model)
        prompts = await self._computations.run(prompt_ids, served, wanted)
        echoed = await self._echoed(served.model, wanted, prompts) if wanted.echo else []
        drawing = Drawing(served, wanted, prompts)
        if wanted.stream:
            return EventStream(drawing, echoed)
        try:
            pieces = await _unless_gone(request, _all(drawing))
        finally:
            drawing.cancel()
        return JSONResponse(Answer(wanted).whole(merged(echoed + pieces), drawing.usage))

    async def _echoed(self, model: Any, wanted: TextRequest, prompts: list[Any]) -> list[Piece]:
        """The pieces with which texts begin that repeat their prompts."""
        found = []
        for number, (prompt, ids) in enumerate(zip(wanted.prompts, prompts, strict=True)):
            tokens: tuple[Any, ...] = ()
            if wanted.logprobs is not None:
                compute = inspection.prompt_tokens
                tokens = tuple(await self._computations.run(compute, model, ids, wanted.logprobs))
            indices = range(number * wanted.n, (number + 1) * wanted.n)
            found += [Piece(index, prompt, tokens) for index in indices]
        return found

    async def runs(self, request: Request) -> Response:
        """GET /api/runs"""
        names = self._library.names()
        folders = [self._library.folder(name) for name in names]
        found = await self._computations.run(lambda: list(map(inspection.describe, names, folders)))
        return JSONResponse(found)

    async def progress(self, request: Request) -> Response:
        """GET /api/runs/NAME"""
        folder = self._library.folder(request.path_params["name"])
        return JSONResponse(await self._computations.run(inspection.progress, folder))

    async def inspect(self, request: Request) -> Response:
        """POST /api/inspect"""
        return await self._computed(request, inspection.inspect)

    async def attention(self, request: Request) -> Response:
        """POST /api/attention"""
        return await self._computed(request, inspection.attention)

    async def _computed(self, request: Request, function: Callable[..., Any]) -> Response:
        fields = Fields(await _body(request))
        name, text = fields.require("model", str), fields.take("text", str, "")
        fields.finish()
        if len(text) > MOST_TOKENS:
            message = f"text has {len(text):,} characters: send at most {MOST_TOKENS:,}"
            raise ApiError(400, message, param="text")
        served = await self._library.get(name)
        return JSONResponse(await self._computations.run(function, served.model, text))


class EventStream(StreamingResponse):
    """A text while it is drawn, as server-sent events. Its slots are freed however it ends."""

    def __init__(self, drawing: Drawing, echoed: list[Piece]) -> None:
        """`echoed`: the pieces to send first."""
        self._drawing, self._echoed = drawing, echoed
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events(), headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events. Starlette cancels this when the client goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._drawing.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        answer = Answer(self._drawing.request)
        try:
            for piece in self._echoed:
                yield _event(*answer.chunks(piece))
            async for piece in self._drawing.pieces():
                yield _event(*answer.chunks(piece))
        except ApiError as error:  # The status is sent already.
            yield _event(error.body)
            return
        if self._drawing.request.include_usage:
            yield _event(answer.usage_chunk(self._drawing.usage))
        yield b"data: [DONE]\n\n"


def _event(*contents: Any) -> bytes:
    lines = (json.dumps(content, separators=(",", ":")) for content in contents)
    return "".join(f"data: {line}\n\n" for line in lines).encode()


async def _all(drawing: Drawing) -> list[Piece]:
    return [piece async for piece in drawing.pieces()]


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`. Raises ClientDisconnect, and ends the work, if the client goes away."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> Any:
    """The JSON of a request's body. Raises ApiError if it is too large, too slow or broken."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                content += part
                if len(content) > MOST_BYTES:
                    raise ApiError(413, f"the body is too large: send at most {MOST_BYTES:,} bytes")
    except TimeoutError:
        raise ApiError(408, f"the body took more than {BODY_S:.0f} s: send it faster") from None
    return parse_json(bytes(content))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "gpt_jax"}


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
