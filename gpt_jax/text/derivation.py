"""Reads a speech of the play: text -> the choices that wrote it.

Every text of the grammar has exactly one derivation (see play.py), so reading gives back what
writing chose: who speaks, on what, in which words. The judge of an answer stands on this.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from gpt_jax.text.grammar import Choice, Node
from gpt_jax.text.play import SPEECH


@dataclass(frozen=True)
class Made:
    """One choice of a derivation: the name of its rule, which alternative, and where it begins."""

    rule: str
    index: int
    start: int


@dataclass(frozen=True)
class Reading:
    """What the grammar makes of a text.

    Attributes:
      text: what was read.
      choices: of the derivation, in the order of their text; of a text that is no speech, those
        of the part that can be read.
      is_speech: whether the whole text is exactly one speech.
    """

    text: str
    choices: tuple[Made, ...]
    is_speech: bool

    def count(self, rule: str) -> int:
        """How often a rule was used."""
        return sum(made.rule == rule for made in self.choices)

    def index(self, rule: str) -> int | None:
        """Which alternative the first use of a rule took; None if it was not used."""
        return next((made.index for made in self.choices if made.rule == rule), None)


def read_speech(text: str) -> Reading:
    """Reads a speech with its blank line."""
    reader = _Reader(text)
    end = reader.read(SPEECH, 0, [])
    return Reading(text, tuple(reader.best), end == len(text))


class _Reader:
    """Reads one text, and remembers the choices of what it could read."""

    def __init__(self, text: str) -> None:
        self.text, self.reached = text, 0
        self.best: list[Made] = []  # The choices that lead to `reached`.

    def read(self, node: Node, start: int, choices: list[Made]) -> int:
        """Where the text of `node` at `start` ends; -1 if there is none. Appends its choices."""
        if isinstance(node, tuple):
            for part in node:
                start = self.read(part, start, choices) if start >= 0 else -1
            return start
        if isinstance(node, Choice):
            return self._read_choice(node, start, choices)
        if not self.text.startswith(node, start):
            return -1
        end = start + len(node)
        is_inside_a_word = end < len(self.text) and self.text[end - 1 : end + 1].isalpha()
        if end > self.reached and not is_inside_a_word:
            self.reached, self.best = end, choices[:]
        return end

    def _read_choice(self, choice: Choice, start: int, choices: list[Made]) -> int:
        """No alternative is a prefix of another, so the first that can be read is the only one."""
        before = len(choices)
        for index in _beginning_with(choice).get(self.text[start : start + 1], ()):
            choices.append(Made(choice.name, index, start))
            end = self.read(choice.nodes[index], start, choices)
            if end >= 0:
                return end
            del choices[before:]
        return -1


@cache
def _beginning_with(choice: Choice) -> dict[str, list[int]]:
    """The alternatives whose texts can begin with a character."""
    found = defaultdict(list)
    for index, node in enumerate(choice.nodes):
        for character in set(_first_characters(node)):
            found[character].append(index)
    return dict(found)


def _first_characters(node: Node) -> Iterator[str]:
    if isinstance(node, str):
        yield node[0]
    elif isinstance(node, tuple):
        yield from _first_characters(node[0])
    else:
        for alternative in node.nodes:
            yield from _first_characters(alternative)
