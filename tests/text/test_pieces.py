"""However a text is split into pieces, they have the ids of the whole."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.text import bpe, pieces, play, tokenizer
from gpt_jax.text.tokenizer import BPETokenizer

END = bpe.END_OF_TEXT
CHINESE = "春眠不觉晓、处处闻啼鸟。夜来风雨声、花落知多少。" * 20
# It has merges across signs, spaces and the letters of markers, so a wrong split changes ids.
SEEN = play.write()[:20_000] + CHINESE + "x!\x1c! \n\t\n  \n \r\nendoftext|><|'s'll12ab" * 200
CONTENT = bpe.train([SEEN], 1000)
WITH_MARKERS = tokenizers.Tokenizer.from_str(json.dumps(CONTENT))
WITH_MARKERS.add_special_tokens(["<|im|>", "<|im|><|im|>", "a<", "xx"])
LIBRARIES = [tokenizers.Tokenizer.from_str(json.dumps(CONTENT)), WITH_MARKERS]
# What pieces may end in or beside, in every order, which single random characters rarely give.
PARTS = [*" \n\t\r\x1c\u00a0\u3000", "  ", *"a!7'._é東。、\u0301²\u200b👍", "the", "'s", "'ll"]
PARTS += [END, "<|", "|>", "<|im|>", "a<", "xx", "x"]
PARTS += ["\U0001e4d0", "\u1c89"]  # Letters since Unicode 15 and 16, which Python may not know.
WORDS = st.lists(st.sampled_from(PARTS)).map("".join)
NO_SPACES = st.lists(st.sampled_from([part for part in PARTS if part.strip()])).map("".join)


def ids(library, text):
    return library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("library", LIBRARIES)
@given(st.one_of(WORDS, NO_SPACES), st.integers(1, 9))
def test_pieces_have_the_ids_of_the_whole(library, text, size):
    cut = list(pieces.of_words([text], size, bpe.added_tokens(library)))
    assert "".join(cut) == text
    assert [i for piece in cut for i in ids(library, piece)] == ids(library, text)


@given(st.one_of(WORDS, NO_SPACES), st.integers(1, 9), st.integers(1, 9))
def test_pieces_do_not_depend_on_the_blocks(text, size, block):
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    cut = list(pieces.of_words(blocks, size, [END]))
    assert cut == list(pieces.of_words([text], size, [END]))
    assert all(cut)
    assert list(pieces.of_words(cut[1:], size, [END])) == cut[1:]


TEXTS = {
    "Chinese": CHINESE,
    "Chinese without signs": CHINESE.replace("、", "").replace("。", ""),
    "one letter": "x" * 1000,
    "one sign": "!" * 1000,
    "no-break spaces": "a\u00a0b" * 300,
    "markers": END * 100,
    "markers and words": f"word{END}" * 100,
    "parts of markers": f"<|endoftext{END}text|>" * 50,
    "base64": "QUJD+GVm/0dI" * 100,
}


@pytest.mark.parametrize("size", [7, 64, 100])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_without_ascii_spaces_has_the_ids_of_the_whole(name, size, monkeypatch):
    monkeypatch.setattr(tokenizer, "ENCODED_AT_ONCE", 3 * size)
    monkeypatch.setattr(bpe, "PIECE", size)
    found = BPETokenizer(CONTENT).encode(TEXTS[name])
    assert found.tolist() == ids(LIBRARIES[0], TEXTS[name])


@pytest.mark.parametrize("size", range(1, 20))
def test_pieces_of_markers_do_not_depend_on_the_blocks(size):
    text = f"x{END}y" * 20 + END * 20
    assert list(pieces.of_words(text, size, [END])) == list(pieces.of_words([text], size, [END]))


@pytest.mark.parametrize("letter", ["\U0001e4d0", "\u1c89", "\u02b9", "\u0560"])
def test_a_letter_that_only_one_of_the_libraries_knows_ends_no_piece(letter):
    """The library tokenizers knows Unicode 16, and Python 3.11 knows 14."""
    assert list(pieces.of_words([f"a{letter}" * 20], 5)) == [f"a{letter}" * 20]


@pytest.mark.parametrize("shift", range(-len(END) - 1, 2))
def test_a_marker_over_the_end_of_a_piece_stays_whole(shift):
    text = "字" * (bpe.PIECE + shift) + END + "字" * bpe.PIECE
    assert BPETokenizer(CONTENT).encode(text).tolist().count(0) == 1


def test_a_text_with_boundaries_is_cut_into_pieces_of_the_size():
    for text in ("春眠、" * 1000, END * 1000, "a!" * 1000, "春眠\u3000" * 1000):
        cut = list(pieces.of_words([text], 100, [END]))
        assert all(80 < len(piece) <= 100 for piece in cut[:-1])


def test_a_long_word_is_one_piece_and_the_rest_is_cut_again():
    text = "x" * 1000 + "!" + "春眠、" * 100
    for blocks in ([text], list(text)):
        first, *others = pieces.of_words(blocks, 50)
        assert first == "x" * 1000
        assert all(40 < len(piece) <= 50 for piece in others[:-1])


@given(WORDS, st.integers(1, 9), st.integers(1, 9))
def test_pieces_of_characters_have_the_size(text, size, block):
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    cut = list(pieces.of_characters(blocks, size))
    assert cut == [text[i : i + size] for i in range(0, len(text), size)]
