"""JSON lines: the forms that are read, and the sentences for lines that are none of them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_jax.errors import UserError
from gpt_jax.tuning.examples import (
    Preference,
    read_conversations,
    read_preferences,
    read_prompts,
)
from gpt_jax.tuning.template import Turn

ASKED, SAID = Turn("user", "Who?"), Turn("assistant", "I.")
MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]


def write(path: Path, *rows: Any) -> str:
    """A file of JSON lines; texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "completion": "I."},
        {"messages": MESSAGES},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"instruction": "Who?", "output": "I."},
        {"instruction": "Who?", "input": "", "output": "I."},
        {"prompt": "Who?", "completion": "I.", "source": "elsewhere", "id": 7},
    ],
)
def test_every_form_of_a_conversation_is_read(row: dict[str, Any], tmp_path: Path) -> None:
    assert read_conversations(write(tmp_path / "a.jsonl", row)) == [(ASKED, SAID)]


def test_alpacas_input_follows_its_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "oui", "output": "yes"}
    [turns] = read_conversations(write(tmp_path / "a.jsonl", row))
    assert turns == (Turn("user", "Translate.\noui"), Turn("assistant", "yes"))


def test_a_conversation_may_have_several_turns_and_a_system(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    [turns] = read_conversations(
        write(tmp_path / "a.jsonl", {"messages": [system, *MESSAGES, *MESSAGES]})
    )
    assert turns == (Turn("system", "Be brief."), ASKED, SAID, ASKED, SAID)


def test_texts_keep_every_character(tmp_path: Path) -> None:
    """Line separators that str.splitlines knows and JSON lines do not are parts of a text."""
    text = 'a\u2028b\u2029\x85 "東" \\n\n'
    row = {"prompt": text, "completion": ""}
    [turns] = read_conversations(write(tmp_path / "a.jsonl", row))
    assert turns == (Turn("user", text), Turn("assistant", ""))


def test_empty_lines_and_windows_line_ends_are_skipped(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "Who?", "completion": "I."})
    (tmp_path / "a.jsonl").write_bytes(f"\r\n{line}\r\n\n  \n{line}".encode())
    assert len(read_conversations(str(tmp_path / "a.jsonl"))) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a", "completion": "b"})
    (tmp_path / "a.jsonl").write_text(line, encoding="utf-8-sig")
    assert len(read_conversations(str(tmp_path / "a.jsonl"))) == 1


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.jsonl", {"prompt": name, "completion": ""})
    write(tmp_path / "d.json", "not JSON lines")
    found = read_conversations(str(tmp_path / "*.jsonl"))
    assert [turns[0].content for turns in found] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "chosen": "I.", "rejected": "You."},
        {
            "prompt": MESSAGES[:1],
            "chosen": MESSAGES[1:],
            "rejected": [{"role": "assistant", "content": "You."}],
        },
        {  # As in Anthropic's data: both answers repeat the prompt.
            "prompt": MESSAGES[:1],
            "chosen": MESSAGES,
            "rejected": [MESSAGES[0], {"role": "assistant", "content": "You."}],
        },
    ],
)
def test_every_form_of_a_preference_is_read(row: dict[str, Any], tmp_path: Path) -> None:
    [found] = read_preferences(write(tmp_path / "a.jsonl", row))
    assert found == Preference((ASKED,), (SAID,), (Turn("assistant", "You."),))


def test_the_prompt_of_a_preference_may_be_a_whole_history(tmp_path: Path) -> None:
    row = {"prompt": [*MESSAGES, MESSAGES[0]], "chosen": "A.", "rejected": "B."}
    [found] = read_preferences(write(tmp_path / "a.jsonl", row))
    assert found.prompt == (ASKED, SAID, ASKED)


def test_prompts_are_read_from_either_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a"}, {"instruction": "b", "output": "c"})
    assert read_prompts(path) == ["a", "b"]


GOOD = {
    read_conversations: {"prompt": "a", "completion": "b"},
    read_preferences: {"prompt": "a", "chosen": "b", "rejected": "c"},
    read_prompts: {"prompt": "a"},
}


@pytest.mark.parametrize(
    ("read", "row", "words"),
    [
        (read_conversations, "{", r"is not JSON \(.*\): give one JSON object per line"),
        (read_conversations, "[" * 100_000, r"is not JSON \(.*\): give one JSON object"),
        (read_conversations, "[1]", "is no JSON object: give "),
        (read_conversations, {}, "has the fields none: give "),
        (read_conversations, {"text": "a"}, "has the fields 'text': give .*completion.*messages"),
        (read_conversations, {"prompt": "a"}, "has the fields 'prompt': give "),
        (read_conversations, {"completion": "a"}, 'has None as "prompt": give a text'),
        (read_conversations, {"prompt": 3, "completion": "a"}, 'has 3 as "prompt": give a text'),
        (read_conversations, {"output": "a"}, 'has None as "instruction": give a text'),
        (
            read_conversations,
            {"instruction": "a", "input": [], "output": "b"},
            r'has \[\] as "input": give a text',
        ),
        (read_conversations, {"messages": []}, 'has no list of messages in "messages": give '),
        (read_conversations, {"messages": "a"}, 'has no list of messages in "messages": give '),
        (read_conversations, {"messages": [3]}, "has a message .* whose role is none of system, "),
        (
            read_conversations,
            {"messages": [{"role": "tool", "content": "a"}]},
            ".* role is none of",
        ),
        (
            read_conversations,
            {"messages": [{"role": "assistant"}]},
            'has None as "content of assistant": give a text',
        ),
        (read_conversations, {"messages": MESSAGES[:1]}, "has no answer: one message needs "),
        (
            read_preferences,
            {"prompt": "a", "chosen": "b"},
            ".*: give .prompt., .chosen. and .rejected.",
        ),
        (
            read_preferences,
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "prefers an answer to itself: give two different answers, or drop the line",
        ),
        (
            read_preferences,
            {"prompt": "a", "chosen": None, "rejected": "b"},
            'has None as "chosen": give a text',
        ),
        (read_prompts, {"text": "a"}, 'has None as "prompt": give a text'),
        (read_prompts, {"instruction": 1}, 'has 1 as "instruction": give a text'),
    ],
)
def test_a_bad_line_is_refused_with_its_number_the_rule_and_the_remedy(
    read: Any, row: Any, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", GOOD[read], "", row, GOOD[read])
    with pytest.raises(UserError) as error:
        read(path)
    assert re.match(rf"line 3 of {re.escape(path)} {words}", str(error.value)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", GOOD)
def test_files_that_are_not_there_or_have_no_line_are_refused(read: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tune\.data = '/no/.*' names no file: give a file or"):
        read("/no/file.jsonl")
    with pytest.raises(UserError, match="has no line: give one JSON object per line"):
        read(write(tmp_path / "a.jsonl", "", " "))
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(UserError, match=r"b\.jsonl cannot be read as UTF-8 .*: give JSON lines"):
        read(str(tmp_path / "b.jsonl"))
    with pytest.raises(UserError, match=r"cannot be read as UTF-8 .*: give JSON lines"):
        read(str(tmp_path))  # A folder.


def test_a_pipe_is_refused_and_not_waited_for(
    tmp_path: Path, mkfifo: Callable[[str | Path], None]
) -> None:
    mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="it is a pipe"):
        read_conversations(str(tmp_path / "pipe.jsonl"))
