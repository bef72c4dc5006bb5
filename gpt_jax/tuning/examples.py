"""JSON lines -> conversations and preferences, checked line by line.

The forms that people have:

    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"instruction": "...", "input": "...", "output": "..."}               Alpaca's
    {"prompt": "...", "chosen": "...", "rejected": "..."}                 preferences

A prompt, a completion, and what was chosen or rejected may also be a list of messages.
"""

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.files import expanded, read_file
from gpt_jax.tuning.template import ASSISTANT, ROLES, USER, Turn

Turns = tuple[Turn, ...]
FORMS = (
    'give "prompt" and "completion", "messages", or "instruction" and "output"; for preferences '
    '"prompt", "chosen" and "rejected"'
)


class _Wrong(Exception):
    """What is wrong with a line."""


@dataclass(frozen=True)
class Preference:
    """A prompt, the better answer and the worse one."""

    prompt: Turns
    chosen: Turns
    rejected: Turns


def read_conversations(source: str) -> list[Turns]:
    """The conversations in a file or glob of JSON lines.

    Raises:
      UserError: if there is no file or no line, or for a line that is none of the forms.
    """
    return [_parsed(_conversation, line) for line in _lines(source)]


def read_preferences(source: str) -> list[Preference]:
    """The preferences in a file or glob of JSON lines. Raises as `read_conversations`."""
    return [_parsed(_preference, line) for line in _lines(source)]


def read_prompts(source: str) -> list[str]:
    """The prompts in a file or glob of JSON lines: "prompt" or "instruction" of each line."""
    return [_parsed(_prompt, line) for line in _lines(source)]


def digest(source: str) -> str:
    """The SHA-256 of all files of `source` together."""
    return hashlib.sha256(b"".join(read_file(path) for path in _files(source))).hexdigest()


def _files(source: str) -> list[Path]:
    paths = [Path(name) for name in sorted(glob.glob(str(expanded(source))))]
    if not paths:
        raise UserError(f"tune.data = {source!r} names no file: give a file or glob of JSON lines")
    return paths


def _lines(source: str) -> Iterator[tuple[str, str]]:
    """Every line that is not empty, and where it is."""
    found = False
    for path in _files(source):
        try:
            text = read_file(path).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as UTF-8 ({error}): give JSON lines") from error
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                found = True
                yield f"line {number} of {path}", line
    if not found:
        raise UserError(f"tune.data = {source!r} has no line: give one JSON object per line")


def _parsed(parse: Any, line: tuple[str, str]) -> Any:
    place, text = line
    try:
        row = json.loads(text)
        if not isinstance(row, dict):
            raise _Wrong(f"is no JSON object: {FORMS}")
        return parse(row)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): give one JSON object per line") from error
    except _Wrong as wrong:
        raise UserError(f"{place} {wrong}") from None


def _conversation(row: dict[str, Any]) -> Turns:
    if "messages" in row:
        turns = _messages("messages", row["messages"])
    elif "completion" in row:
        turns = _turns(row, "prompt", USER) + _turns(row, "completion", ASSISTANT)
    elif "output" in row:
        more = _text("input", row.get("input", ""))
        asked = _text("instruction", row.get("instruction")) + ("\n" + more if more else "")
        turns = (Turn(USER, asked), Turn(ASSISTANT, _text("output", row["output"])))
    else:
        raise _Wrong(f"has the fields {_names(row)}: {FORMS}")
    if not any(turn.role == ASSISTANT for turn in turns):
        raise _Wrong("has no answer: one message needs the role assistant")
    return turns


def _prompt(row: dict[str, Any]) -> str:
    name = "instruction" if "instruction" in row else "prompt"
    return _text(name, row.get(name))


def _preference(row: dict[str, Any]) -> Preference:
    if not {"prompt", "chosen", "rejected"} <= row.keys():
        raise _Wrong(f'has the fields {_names(row)}: give "prompt", "chosen" and "rejected"')
    prompt = _turns(row, "prompt", USER)
    chosen, rejected = (_turns(row, name, ASSISTANT) for name in ("chosen", "rejected"))
    # Some data repeats the prompt's messages in both answers.
    chosen, rejected = (turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
                        for turns in (chosen, rejected))  # fmt: skip
    if chosen == rejected:
        raise _Wrong("prefers an answer to itself: give two different answers, or drop the line")
    return Preference(prompt, chosen, rejected)


def _turns(row: dict[str, Any], name: str, role: str) -> Turns:
    value = row.get(name)
    return _messages(name, value) if isinstance(value, list) else (Turn(role, _text(name, value)),)


def _messages(name: str, messages: Any) -> Turns:
    if not isinstance(messages, list) or not messages:
        raise _Wrong(f'has no list of messages in "{name}": give [{{"role": ..., "content": ...}}]')
    return tuple(_message(name, message) for message in messages)


def _message(name: str, message: Any) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise _Wrong(f'has a message in "{name}" whose role is none of {", ".join(ROLES)}')
    return Turn(message["role"], _text(f"content of {message['role']}", message.get("content")))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong(f'has {value!r:.40} as "{name}": give a text')
    return value


def _names(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"
