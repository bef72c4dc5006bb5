"""The body of a request -> a checked request.

Nothing is ignored: a field that is not supported is refused, unless it has the value that changes
nothing. A field that is null counts as left out.
"""

import dataclasses
import json
import random
from collections.abc import Mapping
from typing import Any

from gpt_jax.config import ANY, INT32, NOT_NEGATIVE, Rule, SampleConfig, checked
from gpt_jax.errors import UserError
from gpt_jax.serving.errors import ApiError
from gpt_jax.tuning.template import ROLES, Turn

MOST_TOKENS = 16_384  # Of a prompt, and of a text that is drawn.
MOST_TEXTS = 16  # Prompts times n.
MOST_STOPS, LONGEST_STOP = 4, 256  # As in OpenAI's API; characters.
MOST_MESSAGES = 1000
MOST_LOGPROBS = 20

# Fields of OpenAI's API that are accepted only with the value that changes nothing.
NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "frequency_penalty": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "suffix": "",
    "tools": [],
}


def up_to(least: int, most: int) -> Rule:
    """The rule for a number from `least` to `most`."""
    return Rule(f"{least} to {most:,}", lambda x: least <= x <= most)


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """What a client wants drawn.

    Attributes:
      prompts: the texts to continue; none for a conversation.
      turns: the conversation to answer; none for prompts.
      options: the fields of SampleConfig that the client gave.
      n: texts per prompt: the samples 0 to n - 1 of the seed.
      stops: a text ends before the first of these strings.
      stream: whether to send the text while it is drawn.
      include_usage: whether a stream ends with the number of tokens.
      echo: whether a text begins with its prompt.
      logprobs: likeliest tokens to report for every token, besides its own; None = no report.
    """

    model: str
    prompts: tuple[str, ...]
    turns: tuple[Turn, ...]
    options: Mapping[str, Any]
    n: int
    seed: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    echo: bool
    logprobs: int | None


def parse_json(content: bytes) -> Any:
    """The JSON of a body. Raises ApiError if it is broken."""
    try:
        return json.loads(content, parse_constant=_no_constant)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply: send a flat JSON object") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON ({error}): send a JSON object") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


class Fields:
    """The fields of a body, taken one by one. `finish` refuses what is left."""

    def __init__(self, body: Any) -> None:
        """Raises ApiError unless `body` is a JSON object."""
        if not isinstance(body, dict):
            raise ApiError(400, "the body is not a JSON object: send one, such as {...}")
        self._rest = {name: value for name, value in body.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._rest

    def take(self, name: str, kind: type, default: Any, rule: Rule = ANY) -> Any:
        """The value of a field, or `default`. Raises ApiError for a wrong type or value."""
        if name not in self._rest:
            return default
        try:
            return checked(name, self._rest.pop(name), kind, rule)
        except UserError as error:
            raise ApiError(400, str(error), param=name) from None

    def require(self, name: str, kind: type) -> Any:
        """As `take`, for a field that must be there."""
        if name not in self._rest:
            raise ApiError(400, f"{name} is missing: give it", param=name)
        return self.take(name, kind, None)

    def take_texts(self, name: str) -> tuple[str, ...] | None:
        """The value of a field that is a string or a list of strings; None if it is left out."""
        value = self._rest.pop(name, None)
        texts = [value] if isinstance(value, str) else value
        if value is None or (isinstance(texts, list) and all(isinstance(t, str) for t in texts)):
            return None if value is None else tuple(texts)
        raise ApiError(400, f"{name} must be a string or a list of strings", param=name)

    def finish(self) -> None:
        """Raises ApiError for a field that is unknown, or has a value that is not supported."""
        for name, value in self._rest.items():
            if name not in NEUTRAL:
                raise ApiError(
                    400, f"{name} is not a field of this endpoint: leave it out", param=name
                )
            if value != NEUTRAL[name]:
                raise ApiError(
                    400, f"{name} is not supported: leave it out, or give {NEUTRAL[name]!r}",
                    param=name,
                )  # fmt: skip


def completion_request(body: Any) -> TextRequest:
    """The request in a body for /v1/completions. Raises ApiError if it cannot be met."""
    fields = Fields(body)
    prompts = fields.take_texts("prompt")
    if not prompts:
        raise ApiError(400, "prompt is missing: give a string or a list of strings", param="prompt")
    logprobs = fields.take("logprobs", int, None, up_to(0, MOST_LOGPROBS))
    echo = fields.take("echo", bool, False)
    return _request(fields, prompts, (), fields.take("max_tokens", int, None), echo, logprobs)


def chat_request(body: Any) -> TextRequest:
    """The request in a body for /v1/chat/completions. Raises ApiError if it cannot be met."""
    fields = Fields(body)
    turns = _turns(fields.require("messages", list))
    wants = fields.take("logprobs", bool, False)
    if "top_logprobs" in fields and not wants:
        raise ApiError(400, "top_logprobs needs logprobs: set it to true", param="top_logprobs")
    best = fields.take("top_logprobs", int, 0, up_to(0, MOST_LOGPROBS))
    most = fields.take("max_tokens", int, None)
    most = fields.take("max_completion_tokens", int, most)
    return _request(fields, (), turns, most, False, best if wants else None)


def _turns(messages: list[Any]) -> tuple[Turn, ...]:
    if not 0 < len(messages) <= MOST_MESSAGES:
        raise ApiError(400, f"messages must have 1 to {MOST_MESSAGES} entries", param="messages")
    turns = []
    for message in messages:
        fields = Fields(message)
        role, content = fields.require("role", str), fields.require("content", str)
        if role not in ROLES:
            message = f"role = {role!r} is not one of {', '.join(ROLES)}: use one of them"
            raise ApiError(400, message, param="messages")
        fields.finish()
        turns.append(Turn(role, content))
    return tuple(turns)


def _request(
    fields: Fields,
    prompts: tuple[str, ...],
    turns: tuple[Turn, ...],
    most: int | None,
    echo: bool,
    logprobs: int | None,
) -> TextRequest:
    """Takes the fields that both endpoints have."""
    request = TextRequest(
        fields.require("model", str), prompts, turns, _options(fields, most),
        fields.take("n", int, 1, up_to(1, MOST_TEXTS)),
        fields.take("seed", int, random.randrange(2**31), INT32),
        _stops(fields),
        fields.take("stream", bool, False),
        _include_usage(fields.take("stream_options", dict, None)),
        echo, logprobs,
    )  # fmt: skip
    fields.finish()
    if request.include_usage and not request.stream:
        raise ApiError(400, "stream_options needs stream: set it to true", param="stream_options")
    if (texts := request.n * max(len(prompts), 1)) > MOST_TEXTS:
        raise ApiError(400, f"{texts} texts are too many: ask for at most {MOST_TEXTS}", param="n")
    return request


def _options(fields: Fields, most: int | None) -> dict[str, Any]:
    """The fields of SampleConfig that were given."""
    found = {
        "temperature": fields.take("temperature", float, None),
        "top_p": fields.take("top_p", float, None),
        "top_k": fields.take("top_k", int, None, NOT_NEGATIVE),
        "max_new_tokens": most,
    }
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        try:
            SampleConfig(**{name: value})
        except UserError as error:
            field = {"max_new_tokens": "max_tokens"}.get(name, name)
            message = str(error).replace(f"sample.{name}", field)
            raise ApiError(400, message, param=field) from None
    if given.get("max_new_tokens", 0) > MOST_TOKENS:
        message = f"max_tokens = {most} is too many: ask for at most {MOST_TOKENS}"
        raise ApiError(400, message, param="max_tokens")
    return given


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = fields.take_texts("stop") or ()
    if len(stops) > MOST_STOPS or not all(0 < len(stop) <= LONGEST_STOP for stop in stops):
        message = f"stop must be up to {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters"
        raise ApiError(400, message, param="stop")
    return stops


def _include_usage(options: dict[str, Any] | None) -> bool:
    fields = Fields(options or {})
    wanted: bool = fields.take("include_usage", bool, False)
    fields.finish()
    return wanted
