"""Rows: what the model learns of a conversation."""

import numpy as np
import pytest

from gpt_jax.text import ByteTokenizer
from gpt_jax.tuning.rows import Dropped, Row, encode, padded
from gpt_jax.tuning.template import TEMPLATES, Turn

BYTES, PLAY = ByteTokenizer(), TEMPLATES["play"]


def turns(prompt: str, answer: str) -> tuple[Turn, ...]:
    return Turn("user", prompt), Turn("assistant", answer)


def learned_text(tokens_W: np.ndarray, mask_T: np.ndarray) -> str:
    return BYTES.decode(tokens_W[1:][mask_T > 0])


def test_the_mask_covers_the_answer_from_its_first_token_to_the_end_of_its_end() -> None:
    row = encode(PLAY, BYTES, turns("Who?", "I, sir."), 64)
    [tokens], [mask] = padded([row], 64)
    assert learned_text(tokens, mask) == "I, sir.\n\n"


def test_padding_is_never_learned_even_where_it_equals_the_end() -> None:
    """Elsewhere the end was masked because padding is the same token: the model never stopped."""
    row = encode(TEMPLATES["line"], BYTES, turns("a", "b"), 8)
    _, [mask] = padded([row], 8)
    assert (mask[: len(row.ids) - 1] == [1, 1]).all()
    assert not mask[len(row.ids) - 1 :].any()


@pytest.mark.parametrize(
    ("longest", "window", "width"),
    [(2, 65, 17), (17, 65, 17), (18, 65, 33), (65, 65, 65), (3, 11, 4), (4, 11, 6), (6, 11, 6)],
)
def test_a_batch_is_as_wide_as_its_longest_row_needs_in_quarters_of_a_window(
    longest: int, window: int, width: int
) -> None:
    rows = [Row(np.ones(size, np.int32), np.ones(size, bool), 1) for size in (2, longest)]
    tokens, mask = padded(rows, window)
    assert (tokens.shape, mask.shape) == ((2, width), (2, width - 1))


def test_every_answer_of_a_conversation_is_learned() -> None:
    row = encode(PLAY, BYTES, turns("a", "b") + turns("c", "d"), 64)
    assert BYTES.decode(row.ids[row.learned]) == "b\n\nd\n\n"


def test_without_the_mask_the_prompt_is_learned_too() -> None:
    row = encode(PLAY, BYTES, turns("a", "b"), 64, mask=False)
    assert row.learned.all()


@pytest.mark.parametrize(
    ("prompt", "answer", "why"),
    [
        ("a" * 50, "b", "longer than the 32 tokens of a window"),
        ("a", "b\n\nc", "an answer holds the text that ends it"),
        ("a", "b\n", "an answer holds the text that ends it"),
    ],
)
def test_a_row_that_cannot_be_learned_is_dropped(prompt: str, answer: str, why: str) -> None:
    with pytest.raises(Dropped, match=why):
        encode(PLAY, BYTES, turns(prompt, answer), 32)


def test_an_answer_that_ends_at_once_is_learned() -> None:
    row = encode(PLAY, BYTES, turns("a", ""), 32)
    assert BYTES.decode(row.ids[row.learned]) == "\n\n"


def test_the_prompt_of_a_row_is_what_comes_before_its_last_answer() -> None:
    row = encode(PLAY, BYTES, turns("a", "b") + turns("c", "d"), 64)
    assert BYTES.decode(row.prompt) == "PROMPTER:\na\n\nb\n\nPROMPTER:\nc\n\n"


def test_a_row_can_be_learned_from_a_place_on() -> None:
    row = Row(np.arange(4), np.array([True, False, True, True]), 1)
    assert list(row.learned_from(2).learned) == [False, False, True, True]


def test_a_prompt_alone_has_nothing_to_learn() -> None:
    with pytest.raises(Dropped, match="nothing to learn"):
        encode(PLAY, BYTES, turns("a", "b")[:1], 64)
