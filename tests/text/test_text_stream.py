"""Ids that arrive in pieces become their whole text, up to the stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.text.text_stream import TextStream
from gpt_jax.text.tokenizer import ByteTokenizer, CharTokenizer

CHARS = CharTokenizer("ab\nπ")
CHAR_PIECES = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=8)


def streamed(tokenizer, pieces, stop=""):
    stream = TextStream(tokenizer, stop)
    texts = [stream.add(piece) for piece in pieces]
    return [*texts, stream.add([], final=True)], stream


def flat(pieces):
    return [i for piece in pieces for i in piece]


@given(CHAR_PIECES)
def test_characters_are_returned_immediately(pieces):
    texts, _ = streamed(CHARS, pieces)
    assert texts == [*(CHARS.decode(piece) for piece in pieces), ""]


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_invalid_bytes_decode_in_pieces_as_they_do_whole(pieces):
    texts, _ = streamed(ByteTokenizer(), [list(piece) for piece in pieces])
    assert "".join(texts) == ByteTokenizer().decode(flat(pieces))


def test_a_character_waits_for_its_last_byte():
    texts, _ = streamed(ByteTokenizer(), [[byte] for byte in "aπ".encode()])
    assert texts == ["a", "", "π", ""]


@given(CHAR_PIECES, st.text("ab\nπ", min_size=1, max_size=4))
def test_the_text_ends_before_the_stop_string(pieces, stop):
    texts, stream = streamed(CHARS, pieces, stop)
    whole = CHARS.decode(flat(pieces))
    assert "".join(texts) == whole.split(stop)[0]
    assert stream.stopped == (stop in whole)


@pytest.mark.parametrize(
    ("stop", "expected"), [("bb", ["a", "", ""]), ("ba", ["a", "b", "b"]), ("π", ["ab", "b", ""])]
)
def test_only_a_possible_start_of_the_stop_string_is_held_back(stop, expected):
    a, b = CHARS.encode("ab")
    assert streamed(CHARS, [[a, b], [b]], stop)[0] == expected
