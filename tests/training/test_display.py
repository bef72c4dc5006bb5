"""Facts and paths fit the width they are given; words are never broken."""

from pathlib import Path

import pytest

from gpt_jax.training.display import HEADINGS, facts, short_path, table_line


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


def test_the_table_of_losses_has_aligned_columns():
    headings, line = table_line(HEADINGS), table_line("123456")
    assert len(headings) == len(line) <= 80
    assert line.split() == list("123456")


def test_a_terminal_of_a_few_columns_gets_the_text_too():
    assert facts([("run", short_path("runs/tiny", -5))], 5) == "run       runs/tiny"
