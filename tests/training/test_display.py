"""Facts and paths fit the width they are given; words are never broken."""

from pathlib import Path

import pytest

from gpt_jax.training.display import LossTable, facts, fitted, short_path


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
        ("/a/very/long/folder/runs/tiny", 22, "...ng/folder/runs/tiny"),
        (Path("/a/b"), 20, "/a/b"),
    ],
)
def test_a_path_is_shortened_from_the_left(path, width, text):
    assert short_path(path, width) == text


def test_a_path_below_the_current_folder_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "runs" / "tiny", 80) == "runs/tiny"


def test_the_last_parts_are_left_out_if_they_do_not_fit():
    assert fitted(["one", "", "two", "three"], 80) == "one  two  three"
    assert fitted(["one", "two", "three"], 9) == "one  two"
    assert fitted(["one", "two"], 1) == "one"


def test_the_headings_come_once():
    table = LossTable(3000)
    first, second = (table.line([str(n)] * 6) for n in (1, 2))
    assert first.count("\n") == 1 and "validation loss" in first
    assert second.split() == ["2"] * 6
    assert max(map(len, first.splitlines())) <= 80


def test_a_terminal_of_a_few_columns_gets_the_text_too():
    assert facts([("run", short_path("runs/tiny", -5))], 5) == "run       runs/tiny"
