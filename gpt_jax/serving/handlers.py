"""What each path of the server does. app.py says which path is whose."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from gpt_jax.api import TrainedModel
from gpt_jax.errors import UserError
from gpt_jax.serving import page_data
from gpt_jax.serving.choice import Piece, Token, merged
from gpt_jax.serving.drawing import Drawing, prompt_ids
from gpt_jax.serving.errors import ApiError
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
from gpt_jax.serving.sending import EventStream, collected, unless_gone

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
        """What the function returns. Raises ApiError for its UserError or OSError, or if too many
        wait."""
        if self._count >= MOST_WAITING:
            raise ApiError(429, "too many requests wait: try again in a few seconds")
        self._count += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, function, *arguments)
        except UserError as error:
            raise ApiError(400, str(error), param="text") from None
        except OSError as error:
            raise ApiError(503, f"a file of the run cannot be read ({error})") from error
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
        return JSONResponse({"object": "list", "data": list(map(_model, self._library.folders()))})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        name = request.path_params["name"]
        self._library.folder(name)
        return JSONResponse(_model(name))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        return await self._answer(request, completion_request(await body_of(request)))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        return await self._answer(request, chat_request(await body_of(request)))

    async def _answer(self, request: Request, wanted: TextRequest) -> Response:
        served = await self._library.get(wanted.model)
        prompts = await self._computations.run(prompt_ids, served, wanted)
        echoed = await self._echoed(served.model, wanted, prompts) if wanted.echo else []
        drawing = Drawing(served, wanted, prompts)
        if wanted.stream:
            return EventStream(drawing, echoed)
        try:
            pieces = await unless_gone(request, collected(drawing))
        finally:
            drawing.cancel()
        return JSONResponse(Answer(wanted).whole(merged(echoed + pieces), drawing.usage))

    async def _echoed(
        self, model: TrainedModel, wanted: TextRequest, prompts: list[np.ndarray]
    ) -> list[Piece]:
        """The pieces with which texts begin that repeat their prompts."""
        found = []
        for number, (prompt, ids) in enumerate(zip(wanted.prompts, prompts, strict=True)):
            tokens: tuple[Token, ...] = ()
            if wanted.logprobs is not None:
                compute = page_data.prompt_tokens
                tokens = tuple(await self._computations.run(compute, model, ids, wanted.logprobs))
            indices = range(number * wanted.n, (number + 1) * wanted.n)
            found += [Piece(index, prompt, tokens) for index in indices]
        return found

    async def runs(self, request: Request) -> Response:
        """GET /api/runs"""
        folders = self._library.folders()
        describe = page_data.describe
        found = await self._computations.run(lambda: list(map(describe, folders, folders.values())))
        return JSONResponse(found)

    async def progress(self, request: Request) -> Response:
        """GET /api/runs/NAME"""
        folder = self._library.folder(request.path_params["name"])
        return JSONResponse(await self._computations.run(page_data.progress, folder))

    async def inspect(self, request: Request) -> Response:
        """POST /api/inspect"""
        return await self._computed(request, page_data.inspect)

    async def attention(self, request: Request) -> Response:
        """POST /api/attention"""
        return await self._computed(request, page_data.attention)

    async def _computed(self, request: Request, function: Callable[..., Any]) -> Response:
        fields = Fields(await body_of(request))
        name, text = fields.require("model", str), fields.take("text", str, "")
        fields.finish()
        if len(text) > MOST_TOKENS:
            message = f"text has {len(text):,} characters: send at most {MOST_TOKENS:,}"
            raise ApiError(400, message, param="text")
        served = await self._library.get(name)
        return JSONResponse(await self._computations.run(function, served.model, text))


async def body_of(request: Request) -> Any:
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
