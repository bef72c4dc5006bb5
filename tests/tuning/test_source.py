"""Rows of data: those that cannot be used, the split, epochs, several turns."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuned import flat, make_config, make_parts

from gpt_jax.config import TuneConfig
from gpt_jax.errors import UserError
from gpt_jax.text import ByteTokenizer, CharTokenizer
from gpt_jax.tuning import make_maker
from gpt_jax.tuning.instructions import Instructions
from gpt_jax.tuning.preferences import Preferences
from gpt_jax.tuning.source import in_epochs, make_task, split_rows

BYTES = ByteTokenizer()
LETTERS = CharTokenizer("abcdefghijklmnopqrstuvwxyz\n")


def objective(path: Path, rows: list[dict[str, Any]], tokenizer: Any = BYTES, **tune: Any) -> Any:
    """The objective of some rows, and a state; a window has 25 ids."""
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tune = {"objective": "instructions", "template": "line"} | tune
    config = make_config(
        tune | {"data": str(path / "a.jsonl")},
        model={"vocab_size": tokenizer.vocab_size, "block_size": 24},
        train={"batch_size": 4},
    )
    parts, state = make_parts(config, tokenizer)
    return make_maker(config, True).make(parts), state


def row(prompt: str, answer: str = "b") -> dict[str, str]:
    return {"prompt": prompt, "completion": answer}


def pair(prompt: str, chosen: Any = "b", rejected: Any = "c") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def texts(batch: Any) -> list[str]:
    return [BYTES.decode(tokens).rstrip("\0") for tokens in flat(batch)["tokens"]]


def test_rows_that_cannot_be_learned_are_left_out_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer that would be cut off has no end; a row of masked targets has no loss."""
    rows = [row("a"), row("b" * 24), row("c" * 40), row("d", "e\nf"), row("g"), row("h" * 22)]
    found, state = objective(tmp_path, rows)
    assert isinstance(found, Instructions)
    err = capsys.readouterr().err
    assert (
        f"note: 3 row(s) of {tmp_path / 'a.jsonl'} left out: longer than the 25 tokens" not in err
    )
    assert f"note: 2 row(s) of {tmp_path / 'a.jsonl'} left out: longer than the 25 tokens" in err
    assert f"note: 1 row(s) of {tmp_path / 'a.jsonl'} left out: an answer holds the text" in err
    used = {text for step in range(3) for text in texts(found.batch(step, state))}
    assert used == {"ab\n", "gb\n"}  # The last one is for validation.


def test_pairs_are_left_out_if_one_of_their_answers_is_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair("a"), pair("a", rejected="c" * 30), pair("d"), pair("e")]
    found, _ = objective(tmp_path, rows, objective="preferences")
    assert isinstance(found, Preferences)
    assert "note: 1 row(s) of" in capsys.readouterr().err
    assert len(found._pairs) == 2


@pytest.mark.parametrize(
    ("rows", "count"),
    [([row("a" * 99)], 0), ([row("a" * 99), row("b")], 1), ([row("a")], 1)],
)
def test_data_without_two_usable_rows_is_refused(
    rows: list[dict[str, str]], count: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"has {count} usable row\(s\): tuning needs two"):
        objective(tmp_path, rows)


def test_a_character_that_the_tokenizer_lacks_is_refused_with_its_line(tmp_path: Path) -> None:
    place = re.escape(str(tmp_path / "a.jsonl"))
    for kind, make in (("instructions", row), ("preferences", pair)):
        with pytest.raises(UserError, match=rf"(line|row) 3 of {place}.*'5' \(U\+0035\)"):
            objective(tmp_path, [make("a"), make("b"), make("5"), make("c")], LETTERS,
                      objective=kind)  # fmt: skip


def test_every_answer_of_a_conversation_is_learned_and_nothing_else(tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    found, state = objective(tmp_path, [{"messages": turns}] * 5)
    batch = flat(found.batch(0, state))
    for tokens, weights in zip(batch["tokens"], batch["weights"], strict=True):
        assert BYTES.decode(tokens).rstrip("\0") == "ab\ncd\n"
        assert BYTES.decode(tokens[1:][weights > 0]) == "b\nd\n"


def test_the_history_of_a_preference_is_not_learned(tmp_path: Path) -> None:
    history = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    rows = [{"prompt": history, "chosen": "good", "rejected": "bad"}] * 5
    for mask_prompt in (True, False):
        found, state = objective(tmp_path, rows, objective="preferences", mask_prompt=mask_prompt)
        batch = flat(found.batch(0, state))
        for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
            learned = [BYTES.decode(t[1:][m > 0]) for t, m in zip(tokens, mask, strict=True)]
            assert learned == ["good\n", "bad\n"]
            assert BYTES.decode(tokens[0]).startswith("ab\ncgood\n")


def test_every_target_weighs_the_same_whatever_the_length_of_its_answer(tmp_path: Path) -> None:
    rows = [row("a", "b" * n) for n in (1, 3, 5, 9)] + [row("a")]
    found, state = objective(tmp_path, rows)
    weights = flat(found.batch(0, state))["weights"]
    assert (weights > 0).sum(-1).tolist() != [2, 2, 2, 2]
    assert len(np.unique(weights[weights > 0])) == 1
    assert weights.sum() == pytest.approx(4)


def test_an_epoch_has_every_row_once_and_each_epoch_another_order() -> None:
    drawn = np.concatenate([in_epochs(10, 4, 0, step) for step in range(10)])
    epochs = drawn.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    np.testing.assert_array_equal(in_epochs(10, 4, 0, 7), in_epochs(10, 4, 0, 7))
    assert not np.array_equal(in_epochs(10, 4, 0, 7), in_epochs(10, 4, 1, 7))
    assert sorted(in_epochs(3, 7, 0, 0)) == sorted(
        [*range(3), *range(3), in_epochs(3, 7, 0, 0)[-1]]
    )


@pytest.mark.parametrize(("count", "val"), [(2, 1), (9, 1), (10, 1), (20, 2), (100, 10)])
def test_the_last_rows_are_for_validation_at_least_one(count: int, val: int) -> None:
    training, validation = split_rows(list(range(count)), 0.1, "data")
    assert training + validation == list(range(count))
    assert len(validation) == val


def test_training_prompts_depend_on_the_seed_and_held_out_ones_do_not() -> None:
    def prompts(seed: int, held_out: bool) -> list[str]:
        config = make_config({"objective": "instructions", "task": "sums"},
                             train={"seed": seed}, model={"vocab_size": 13})  # fmt: skip
        parts, _ = make_parts(config, CharTokenizer("\n+0123456789="))
        source = make_maker(config, False).make(parts)._source  # type: ignore[attr-defined]
        return [source.prompt(i, held_out).text for i in range(5)]

    assert prompts(0, True) == prompts(1, True)
    assert set(prompts(0, False)).isdisjoint(prompts(1, False))


@pytest.mark.parametrize("names", [{}, {"task": "sums", "data": "a.jsonl"}])
def test_both_a_task_and_data_or_neither_is_refused(names: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"needs either a task or data: give --config\.tune\.task="):
        make_task(TuneConfig(objective="instructions", **names))
