"""The built-in play on request: "Let ZEBEDEE speak of the sea, in two sentences, naming the oar."

A prompt names up to four conditions: who speaks, on which topic, in how many sentences between the
greeting and the farewell, and a word. The answer is a speech of the grammar that fulfils them. The
judge reads the answer back into its one derivation (text/derivation.py), so nothing is guessed.

A tenth of all combinations of conditions, picked by a hash, is held out: training never asks for
such a combination, in any wording.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from gpt_jax.text import grammar
from gpt_jax.text.derivation import Reading, read_speech
from gpt_jax.text.play import CALLS, SPEAKERS, SPEECH, WORLD, write
from gpt_jax.tuning.tasks.task import Prompt, Verdict, is_held_out

LONGEST = 192  # Characters of a speech: it fits into a window of 320 with any prompt.
NUMBERS = ("", "one", "two", "three")  # More sentences hardly ever fit.
SUBJECTS = ("the bells", "salt", "the sea", "bread", "the light", "love")
ASKED = 0.8  # The share of prompts that name a condition, for each condition.

# How a prompt is worded; {who}, {topic}, {number} and {word} stand for the conditions.
WORDINGS = grammar.read(
    """
lead = 3 Let {who} speak | 2 Give us {who} | 2 We would hear {who} | 1 Bring on {who}
  | 1 Now comes {who} | 1 Write a speech for {who}
about = 3 of {topic} | 2 about {topic} | 2 on {topic}
length = 3 in {number} | 2 with {number} | 1 using {number} | 1 in exactly {number}
naming = 3 with the word {word} | 2 naming the {word} | 1 where the {word} comes in
  | 1 and forget not the {word}
close = 4 . | 1 !
""",
    {name: f"{{{name}}}" for name in ("who", "topic", "number", "word")},
)

_TOPICS: dict[str, Any] = {
    name: node for name, node in grammar.read(WORLD, {}).items() if name in CALLS
}


@dataclass(frozen=True)
class Wish:
    """What a prompt asks for; empty or 0 = nothing asked."""

    speaker: str = ""
    topic: str = ""
    sentences: int = 0
    word: str = ""


class Play:
    """The task."""

    template = "play"

    @property
    def alphabet(self) -> str:
        """The characters of the grammar. They are not needed to read or draw: 0.3 s."""
        return "".join(sorted(set(write())))

    def prompt(self, seed: int, index: int, held_out: bool) -> Prompt:
        """Prompt number `index`. The answer is drawn first; the conditions are taken from it."""
        draw = Random(f"play {seed} {index} {held_out}").random
        while True:
            speech = _short_speech(draw)
            wish = _wish(speech, draw)
            if wish != Wish() and is_held_out(repr(wish), 10) == held_out:
                return Prompt(_worded(wish, draw), speech.text.removesuffix("\n\n"), wish)

    def judge(self, prompt: Prompt, answer: str) -> Verdict:
        """A verdict on the grammar and on each condition that was asked for."""
        reading, wish = read_speech(answer + "\n\n"), prompt.wanted
        verdicts = {"grammar": reading.is_speech}
        if wish.speaker:
            verdicts["speaker"] = _speaker(reading) == wish.speaker
        if wish.topic:
            verdicts["topic"] = _topic(reading) == wish.topic
        if wish.sentences:
            verdicts["sentences"] = reading.count("sentence") == wish.sentences
        if wish.word:
            verdicts["word"] = wish.word in _things(reading)
        return Verdict(verdicts)


def _short_speech(draw: Callable[[], float]) -> Reading:
    """A speech that fits, of at most three sentences."""
    while True:
        pieces: list[str] = []
        grammar.draw(SPEECH, draw, pieces)
        text = "".join(pieces)
        if len(text) <= LONGEST and (reading := read_speech(text)).count("sentence") < len(NUMBERS):
            return reading


def _wish(speech: Reading, draw: Callable[[], float]) -> Wish:
    """Some of what a speech fulfils. Its first thing is the word: easier to learn than any."""
    things = _things(speech)
    every = {
        "speaker": _speaker(speech),
        "topic": _topic(speech),
        "sentences": speech.count("sentence"),
        "word": things[0] if things else "",
    }
    asked: dict[str, Any] = {name: value for name, value in every.items() if draw() < ASKED}
    return Wish(**asked)


def _worded(wish: Wish, draw: Callable[[], float]) -> str:
    """A prompt for a wish: what is asked for stands in any order after the lead."""
    texts = {
        "who": wish.speaker or "someone",
        "topic": SUBJECTS[list(CALLS).index(wish.topic)] if wish.topic else "",
        "number": f"{NUMBERS[wish.sentences]} sentence{'s' * (wish.sentences > 1)}",
        "word": wish.word,
    }
    asked = {"about": wish.topic, "length": wish.sentences, "naming": wish.word}
    parts = sorted((draw(), rule) for rule, value in asked.items() if value)
    phrases = [_phrase(rule, draw) for rule in ("lead", *(rule for _, rule in parts))]
    text = " ".join(phrases[:2]) + "".join(f", {phrase}" for phrase in phrases[2:])
    return (text + _phrase("close", draw)).format(**texts)


def _phrase(rule: str, draw: Callable[[], float]) -> str:
    pieces: list[str] = []
    grammar.draw(WORDINGS[rule], draw, pieces)
    return "".join(pieces)


def _speaker(reading: Reading) -> str:
    index = reading.index("speaker")
    return "" if index is None else SPEAKERS[index][1]


def _topic(reading: Reading) -> str:
    index = reading.index("topic")
    return "" if index is None else list(CALLS)[index]


def _things(reading: Reading) -> list[str]:
    """The words of the topic that a speech names, singular."""
    made = [(_TOPICS[made.rule], made.index) for made in reading.choices if made.rule in CALLS]
    return [str(words.nodes[index]) for words, index in made]
