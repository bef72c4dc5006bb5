"""Reports on many answers."""

import json

import numpy as np
import pytest

from gpt_jax.tuning.answers import Answer
from gpt_jax.tuning.judging import Share, judge, preferences
from gpt_jax.tuning.tasks.sums import Sums
from gpt_jax.tuning.tasks.task import Prompt


def answer(text: str, ended: bool = True) -> Answer:
    return Answer(np.zeros(0, np.int32), text, ended)


def test_a_report_counts_answers_conditions_and_ends() -> None:
    prompts = [Prompt("001+001=", "2"), Prompt("002+002=", "4"), Prompt("003+003=", "6")]
    drawn = [("2", "3"), ("5", "4"), ("7", "8")]
    answers = [[answer(a), answer(b)] for a, b in drawn]
    report = judge(Sums(), prompts, answers)
    assert (report.fulfilled.hits, report.fulfilled.total) == (2, 6)
    assert report.pass_at_k == Share(2, 3)
    assert report.conditions == {"sum": Share(2, 6)}
    assert report.ended == Share(6, 6)


def test_a_right_answer_that_does_not_end_is_not_fulfilled() -> None:
    report = judge(Sums(), [Prompt("001+001=", "2")], [[answer("2", ended=False)]])
    assert report.fulfilled.hits == 0
    assert report.conditions["sum"].hits == 1


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(hits: int, total: int, low: float, high: float) -> None:
    found = Share(hits, total).interval
    assert found == pytest.approx((low, high), abs=3e-4) or total == 0


def test_preferences_are_the_best_and_the_worst_answer_that_ended() -> None:
    prompts = [Prompt("1", "2"), Prompt("2", "4"), Prompt("3", "6"), Prompt("4", "8")]
    groups = [
        [answer("2"), answer("7")],
        [answer("4"), answer("4")],  # Equally good.
        [answer("6"), answer("5", ended=False)],  # Only one ended.
        [answer("9", ended=False), answer("8", ended=False)],
    ]
    lines = [json.loads(line) for line in preferences(Sums(), prompts, groups)]
    assert lines == [{"prompt": "1", "chosen": "2", "rejected": "7"}]
