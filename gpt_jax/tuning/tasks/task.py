"""What a task is: it writes prompts, judges answers, and knows a right answer to each prompt."""

import zlib
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Prompt:
    """A prompt and a right answer, without the template around them.

    Attributes:
      wanted: what the judge needs to know, in the task's own form.
    """

    text: str
    answer: str
    wanted: Any = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an answer: for each condition, whether it is fulfilled."""

    conditions: dict[str, bool]

    @property
    def fulfilled(self) -> bool:
        """Whether the answer fulfils everything."""
        return all(self.conditions.values())

    @property
    def score(self) -> float:
        """The reward: 1 if everything is fulfilled, else half the share of what is.

        The step to 1 makes the last condition worth more than the first; the share gives answers
        that fulfil little something to climb.
        """
        share = sum(self.conditions.values()) / len(self.conditions)
        return share if self.fulfilled else share / 2


class Task(Protocol):
    """A built-in task. Everything is a function of the arguments.

    Attributes:
      template: the name of its template.
    """

    template: str

    @property
    def alphabet(self) -> str:
        """The characters of all its texts."""

    def prompt(self, seed: int, index: int, held_out: bool) -> Prompt:
        """Prompt number `index`: of those for training, or of those that are held out."""

    def judge(self, prompt: Prompt, answer: str) -> Verdict:
        """The verdict on an answer, which ended by itself and stands here without its end."""


def is_held_out(key: str, one_in: int) -> bool:
    """Whether a prompt is held out: a fixed share, by a hash of what the prompt asks for."""
    return zlib.crc32(key.encode("utf-8")) % one_in == 0
