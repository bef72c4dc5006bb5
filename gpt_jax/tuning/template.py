"""How a conversation becomes text, and what ends an answer.

A template gives each role an opening and a closing. It is data in the run's record, so sampling,
Python and evaluation write a prompt exactly as tuning did. The closing of an answer is learned with
the answer, and the sampler stops at it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.text import Tokenizer

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = (SYSTEM, USER, ASSISTANT)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one role says."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Template:
    """For each role, the text before and after what it says.

    Attributes:
      assistant: its closing is the end of an answer; no answer may contain it.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]

    @property
    def end(self) -> str:
        """The text that ends an answer."""
        return self.assistant[1]

    def pieces(self, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        """The conversation as pieces of text, each with whether the model learns it."""
        found = []
        for turn in turns:
            opening, closing = getattr(self, turn.role)
            is_answer = turn.role == ASSISTANT
            found += [(opening, False), (turn.content, is_answer), (closing, is_answer)]
        return [(text, learned) for text, learned in found if text]

    def prompt_ids(self, tokenizer: Tokenizer, turns: Sequence[Turn]) -> np.ndarray:
        """The ids of a conversation that waits for an answer, int32.

        Raises:
          UserError: for a character that is not in the vocabulary, or if there is no text at all.
        """
        texts = [text for text, _ in self.pieces(turns)] + [self.assistant[0]]
        if not any(texts):
            raise UserError("the instruction is empty: give some text")
        return joined([tokenizer.encode(text) for text in texts if text])

    def check_known(self, tokenizer: Tokenizer) -> None:
        """Raises UserError if the tokenizer lacks a character of the template."""
        for text in (text for role in ROLES for text in getattr(self, role)):
            try:
                tokenizer.encode(text)
            except UserError as error:
                raise UserError(
                    f"the tokenizer lacks a character of {text!r} in the template ({error}): give "
                    "--config.tune.template=line, paragraph or a JSON file"
                ) from error

    def end_ids(self, tokenizer: Tokenizer) -> np.ndarray:
        """The ids that end an answer, int32. Raises UserError if the tokenizer lacks one."""
        return joined([tokenizer.encode(self.end)])

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes this template again."""
        return {role: list(getattr(self, role)) for role in ROLES}

    @classmethod
    def from_dict(cls, content: Any) -> "Template":
        """The template in plain data. Raises UserError unless it has two texts for every role."""
        try:
            pairs = {role: tuple(content[role]) for role in ROLES}
        except (KeyError, TypeError) as error:
            raise UserError(_WRONG.format(content)) from error
        texts = [text for pair in pairs.values() for text in pair]
        if any(len(pair) != 2 for pair in pairs.values()) or not all(
            isinstance(text, str) for text in texts
        ):
            raise UserError(_WRONG.format(content))
        if not pairs[ASSISTANT][1]:
            raise UserError("a template needs a closing of the assistant: it ends an answer")
        return cls(**pairs)


_WRONG = "{!r} is no template: give an opening and a closing for each of " + ", ".join(ROLES)

END_OF_TEXT = "<|endoftext|>"

# "play" is the form of the built-in play: a name, a colon, lines, a blank line. An answer there
# begins with the name of its speaker, so the assistant has no opening of its own.
TEMPLATES = {
    "play": Template(("", "\n\n"), ("PROMPTER:\n", "\n\n"), ("", "\n\n")),
    "paragraph": Template(("", ""), ("", ""), ("", "\n\n")),
    "line": Template(("", ""), ("", ""), ("", "\n")),
    "chatml": Template(
        ("<|im_start|>system\n", "<|im_end|>\n"),
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", END_OF_TEXT),
    ),
    "alpaca": Template(
        ("", "\n\n"), ("### Instruction:\n", "\n\n"), ("### Response:\n", END_OF_TEXT)
    ),
}


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of ids as one, int32."""
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
