"""The clock measures training steps alone, and estimates the time left from what it measured."""

import pytest

from gpt_jax.training.clock import Clock, duration


class Time:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self):
        return self.now


def test_the_speed_excludes_compilation_and_pauses():
    time = Time()
    clock = Clock(5.0, time)
    for seconds in (30, 2, 2):  # The first step compiles.
        time.now += seconds
        clock.step_done()
        with clock.pause():
            time.now += 10
    assert clock.lap_steps_per_s() == pytest.approx(0.5)
    assert clock.lap_steps_per_s() is None
    assert clock.elapsed_s == pytest.approx(5 + 34 + 30)
    assert clock.left(6, {}) == "0:12"


def test_the_speed_and_the_time_left_are_unknown_after_one_step():
    clock = Clock(0.0, Time())
    clock.step_done()
    assert clock.lap_steps_per_s() is None
    assert clock.left(9, {}) == "?"
    assert clock.left(0, {}) == "0:00"


def test_the_time_left_uses_the_last_duration_of_other_work():
    time = Time()
    clock = Clock(0.0, time)
    for _ in range(2):
        time.now += 1
        clock.step_done()
    assert clock.left(10, {"evaluating": 2}) == "over 0:10"
    for seconds in (60, 5):  # The first evaluation compiles.
        with clock.timing("evaluating"):
            time.now += seconds
    assert clock.left(10, {"evaluating": 2}) == "0:20"
    assert clock.left(10, {"evaluating": 2, "saving": 0}) == "0:20"
    assert clock.left(10, {"evaluating": 2, "saving": 1}) == "over 0:20"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7322, "2:02:02")],
)
def test_durations_are_minutes_and_seconds_or_hours(seconds, text):
    assert duration(seconds) == text
