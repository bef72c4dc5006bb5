"""Reading a speech of the play back into its choices."""

from collections.abc import Iterator
from itertools import islice
from math import log

import pytest

from gpt_jax.text import play
from gpt_jax.text.derivation import Made, read_speech
from gpt_jax.text.grammar import Node

SPEECHES = [speech.text for speech in islice(play.speeches(3), 200)]


def test_every_speech_is_read_to_its_end() -> None:
    assert all(read_speech(text).is_speech for text in SPEECHES)


def cost(node: Node, choices: Iterator[Made]) -> float:
    """-log p of the choices of a derivation, each taken from `choices` in the order of the text."""
    if isinstance(node, str):
        return 0.0
    if isinstance(node, tuple):
        return sum(cost(part, choices) for part in node)
    made = next(choices)
    assert made.rule == node.name
    chosen = log(sum(node.weights) / node.weights[made.index])
    return chosen + cost(node.nodes[made.index], choices)


def test_the_choices_that_are_read_are_those_that_were_drawn() -> None:
    for speech in islice(play.speeches(4), 50):
        choices = iter(read_speech(speech.text).choices)
        assert cost(play.SPEECH, choices) == pytest.approx(speech.nats)
        assert next(choices, None) is None


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "x", lambda t: t.replace(":", ";", 1)]
)
def test_a_changed_speech_is_no_speech(change: object) -> None:
    for text in SPEECHES[:50]:
        assert callable(change)
        assert not read_speech(change(text)).is_speech


def test_of_a_broken_speech_the_readable_part_is_known() -> None:
    text = next(text for text in SPEECHES if read_speech(text).count("sentence") > 2)
    whole = read_speech(text)
    third = [made.start for made in whole.choices if made.rule == "sentence"][2]
    broken = read_speech(text[:third] + "#" + text[third:])
    assert not broken.is_speech
    assert broken.index("speaker") == whole.index("speaker")
    assert broken.index("topic") == whole.index("topic")
    assert broken.count("sentence") == 2


def test_nothing_is_read_from_other_text() -> None:
    assert read_speech("It was a dark and stormy night.\n\n").choices == ()
    assert read_speech("").choices == ()
