"""Pieces of text -> the JSON of OpenAI's completions and chat completions, whole or streamed."""

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_jax.serving.choice import Piece, Token
from gpt_jax.serving.requests import TextRequest

Json = dict[str, Any]


class Answer:
    """Writes the answer to one request. Its id and time are those of all its chunks."""

    def __init__(self, request: TextRequest) -> None:
        self._request, self._is_chat = request, bool(request.turns)
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._begun: set[int] = set()  # Texts of a chat whose role was sent.

    def whole(self, pieces: Sequence[Piece], usage: Json) -> Json:
        """The answer in one object; `pieces` has one for each text."""
        write = self._message if self._is_chat else self._text
        choices = [write(piece) for piece in sorted(pieces, key=lambda piece: piece.index)]
        return self._object(choices, is_chunk=False) | {"usage": usage}

    def chunks(self, piece: Piece) -> Iterator[Json]:
        """The chunks of a stream for one piece of a text."""
        written = self._deltas(piece) if self._is_chat else [self._text(piece)]
        for choice in written:
            yield self._object([choice], is_chunk=True)

    def usage_chunk(self, usage: Json) -> Json:
        """The chunk with the number of tokens, which ends a stream that asked for it."""
        return self._object([], is_chunk=True) | {"usage": usage}

    def _object(self, choices: list[Json], is_chunk: bool) -> Json:
        kind = "text_completion"
        if self._is_chat:
            kind = "chat.completion.chunk" if is_chunk else "chat.completion"
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
            "choices": choices,
        }

    def _text(self, piece: Piece) -> Json:
        logprobs = None if self._request.logprobs is None else text_logprobs(piece.tokens)
        return {
            "text": piece.text,
            "index": piece.index,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def _message(self, piece: Piece) -> Json:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._choice(piece.index, {"message": message}, piece.tokens, piece.finish_reason)

    def _deltas(self, piece: Piece) -> Iterator[Json]:
        """Before a text's first piece, a chunk with the role; after its last, one with its end."""
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            delta = {"role": "assistant", "content": ""}
            yield self._choice(piece.index, {"delta": delta}, (), None)
        if piece.text or piece.tokens:
            delta = {"content": piece.text}
            yield self._choice(piece.index, {"delta": delta}, piece.tokens, None)
        if piece.finish_reason:
            yield self._choice(piece.index, {"delta": {}}, (), piece.finish_reason)

    def _choice(
        self, index: int, content: Json, tokens: Sequence[Token], finish_reason: str | None
    ) -> Json:
        logprobs = None if self._request.logprobs is None else chat_logprobs(tokens)
        end = {"logprobs": logprobs, "finish_reason": finish_reason}
        return {"index": index} | content | end


def text_logprobs(tokens: Sequence[Token]) -> Json:
    """Tokens as completions have them. Of tokens with equal text, the likeliest counts."""
    best = [dict(reversed(token.best)) if token.best else None for token in tokens]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": best,
        "text_offset": [token.offset for token in tokens],
    }


def chat_logprobs(tokens: Sequence[Token]) -> Json:
    """Tokens as chat completions have them."""

    def written(text: str, logprob: float | None) -> Json:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            written(token.text, token.logprob)
            | {"top_logprobs": list(itertools.starmap(written, token.best))}
            for token in tokens
        ],
        "refusal": None,
    }
