"""A request's texts, drawn by the engine and awaited by the event loop."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspection import Scores
from gpt_jax.sampling import encode_prompt
from gpt_jax.serving.choice import Choice, Piece, merged
from gpt_jax.serving.engine import Job, QueueFull
from gpt_jax.serving.errors import ApiError
from gpt_jax.serving.library import Served
from gpt_jax.serving.requests import MOST_TOKENS, TextRequest
from gpt_jax.tuning.answers import room_for_answer


class Mailbox:
    """Pieces from a worker's thread, for a coroutine. It never blocks the worker.

    What a slow reader has not taken is bounded by the length of its texts.
    """

    def __init__(self) -> None:
        """Call it in the event loop that takes."""
        self._loop, self._filled = asyncio.get_running_loop(), asyncio.Event()
        self._pieces: collections.deque[Piece] = collections.deque()

    def put(self, piece: Piece) -> None:
        """Adds a piece, from any thread."""
        self._pieces.append(piece)
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody takes any more.
            self._loop.call_soon_threadsafe(self._filled.set)

    async def take(self) -> list[Piece]:
        """Waits for pieces; all since the last call, joined for each text."""
        await self._filled.wait()
        self._filled.clear()
        return merged([self._pieces.popleft() for _ in range(len(self._pieces))])


def prompt_ids(served: Served, request: TextRequest) -> list[np.ndarray]:
    """The ids of every prompt.

    Raises:
      ApiError: for an unknown character, too many tokens, or a conversation with a run that was
        not tuned on conversations.
    """
    tokenizer = served.model.tokenizer
    try:
        if not request.turns:
            found = [encode_prompt(tokenizer, prompt) for prompt in request.prompts]
        elif served.model.template is None:
            message = (
                f"the run {served.name} was not tuned on conversations: use /v1/completions, or "
                "choose a tuned run"
            )
            raise ApiError(400, message, code="not_a_chat_model", param="model")
        else:
            found = [served.model.template.prompt_ids(tokenizer, request.turns)]
    except UserError as error:
        param = "messages" if request.turns else "prompt"
        raise ApiError(400, str(error), code="unknown_character", param=param) from None
    _check_lengths(found, request, served.model.config.model.block_size)
    return found


def _check_lengths(found: list[np.ndarray], request: TextRequest, block_size: int) -> None:
    """Raises ApiError for too many tokens. A conversation must leave room for an answer."""
    try:
        if request.turns:
            room_for_answer(found[0], block_size)
    except UserError as error:
        code = "context_length_exceeded"
        raise ApiError(400, str(error), code=code, param="messages") from None
    if (longest := max(map(len, found))) > MOST_TOKENS:
        message = f"the prompt has {longest:,} tokens: send at most {MOST_TOKENS:,}"
        raise ApiError(400, message, code="context_length_exceeded", param="prompt")


class Drawing:
    """The texts of a request while they are drawn.

    Attributes:
      prompts: the ids of every prompt.
      choices: a text each: the first n belong to the first prompt, and so on.
    """

    def __init__(self, served: Served, request: TextRequest, prompts: list[np.ndarray]) -> None:
        """Puts the texts into the queue. Raises ApiError if it is full."""
        self.served, self.request, self.prompts = served, request, prompts
        self._options = served.model.sample_config("", **request.options)
        stops = request.stops
        most, tokenizer = self._options.max_new_tokens, served.model.tokenizer
        if request.turns and (template := served.model.template):
            stops = (*stops, template.end)
            most = min(most, room_for_answer(prompts[0], served.model.config.model.block_size))
        self.choices = [
            Choice(
                index, tokenizer, stops, most, request.logprobs,
                len(request.prompts[index // request.n]) if request.echo else 0,
            )
            for index in range(request.n * len(prompts))
        ]  # fmt: skip
        self._mailbox = Mailbox()
        self._jobs = [] if most == 0 else [self._job(choice) for choice in self.choices]
        try:
            served.engine.submit(self._jobs)
        except QueueFull:
            message = "too many texts wait: try again in a few seconds"
            raise ApiError(429, message, code="queue_full") from None

    def _job(self, choice: Choice) -> Job:
        def take(ids: np.ndarray, scores: Scores) -> bool:
            piece = choice.add(ids, scores)
            if piece.text or piece.tokens or piece.finish_reason:
                self._mailbox.put(piece)
            return piece.finish_reason is None

        def fail(reason: str) -> None:
            self._mailbox.put(Piece(choice.index, "", error=reason))

        ids, index = self.prompts[choice.index // self.request.n], choice.index % self.request.n
        scored = self.request.logprobs is not None
        return Job(ids, self._options, self.request.seed, index, choice.most, scored, take, fail)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all texts as they come. Raises ApiError if a text cannot be drawn."""
        left = len(self._jobs)
        if not left:
            for choice in self.choices:
                yield Piece(choice.index, "", finish_reason=choice.finish_reason)
        while left:
            for piece in await self._mailbox.take():
                if piece.error:
                    raise ApiError(503, piece.error, code="drawing_failed")
                left -= piece.finish_reason is not None
                yield piece

    def cancel(self) -> None:
        """Frees the slots. Does nothing for texts that have ended."""
        self.served.engine.cancel(self._jobs)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens so far, as OpenAI's API names them."""
        prompt = sum(map(len, self.prompts))
        drawn = sum(choice.drawn for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
        }
