"""Facts and paths fit the width they are given; words are never broken."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from gpt_jax.training.display import (
    CONTROLS,
    HEADINGS,
    facts,
    harmless,
    short_path,
    show,
    table_line,
)


def test_facts_wrap_between_words_and_keep_their_column():
    text = facts([("model", "one two three four five"), ("", "six"), ("a-long-label", "seven")], 30)
    assert text.splitlines() == [
        "model     one two three four",
        "          five",
        "          six",
        "a-long-label",
        "          seven",
    ]


@pytest.mark.parametrize(
    ("path", "width", "text"),
    [
        ("runs/tiny", 20, "runs/tiny"),
        ("/a/very/long/folder/runs/tiny", 22, "/a/very/l...runs/tiny"),
        (Path("/a/b"), 20, "/a/b"),
    ],
)
def test_a_long_path_loses_its_middle(path, width, text):
    assert short_path(path, width) == text


def test_a_path_below_the_current_folder_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "runs" / "tiny", 80) == "runs/tiny"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\tb", "a\n\tb"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\r\nb\rc\bd\0\x7f", "a\nb" + r"\rc\x08d\x00\x7f"),
        ("\x9b31m \x85 \u2028 \xa0 é 東 😀", r"\x9b31m \x85" + " \u2028 \xa0 é 東 😀"),
    ],
)
def test_a_terminal_gets_no_control_characters_and_a_file_gets_all(text, shown):
    assert harmless(text, True) == shown
    assert harmless(text, False) == text
    console = Console(file=io.StringIO(), force_terminal=True)
    show(console, text)
    assert not CONTROLS.search(console.file.getvalue())


def test_the_table_of_losses_has_aligned_columns():
    headings, line = table_line(HEADINGS), table_line("123456")
    assert len(headings) == len(line) <= 80
    assert line.split() == list("123456")


def test_a_terminal_of_a_few_columns_gets_the_text_too():
    assert facts([("run", short_path("runs/tiny", -5))], 5) == "run       runs/tiny"
