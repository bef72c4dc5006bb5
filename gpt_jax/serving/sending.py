"""How an answer is sent: whole, unless the client goes away first, or while it is drawn."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gpt_jax.serving.choice import Piece
from gpt_jax.serving.drawing import Drawing
from gpt_jax.serving.errors import ApiError
from gpt_jax.serving.protocol import Answer

T = TypeVar("T")


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
                yield event(*answer.chunks(piece))
            async for piece in self._drawing.pieces():
                yield event(*answer.chunks(piece))
        except ApiError as error:  # The status is sent already.
            yield event(error.body)
            return
        if self._drawing.request.include_usage:
            yield event(answer.usage_chunk(self._drawing.usage))
        yield b"data: [DONE]\n\n"


def event(*contents: Any) -> bytes:
    """Objects as server-sent events."""
    lines = (json.dumps(content, separators=(",", ":")) for content in contents)
    return "".join(f"data: {line}\n\n" for line in lines).encode()


async def collected(drawing: Drawing) -> list[Piece]:
    """All pieces of a request. Raises ApiError as `Drawing.pieces`."""
    return [piece async for piece in drawing.pieces()]


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
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
