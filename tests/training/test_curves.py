"""The numbers in the pictures: points, averages, ranges, places of labels."""

import itertools
import math

import pytest

from gpt_jax.training.curves import averaged, best, loss_range, points, spread, time_unit

ENTRIES = [
    {"step": 10, "train/loss": 4.0},
    {"step": 20, "train/loss": None},
    {"step": 30, "train/loss": math.nan, "val/loss": 2.5},
    {"step": 40, "train/loss": 1.5, "val/loss": 2.7},
]


def test_points_are_the_finite_numbers():
    assert points(ENTRIES, "step", "train/loss") == [(10, 4.0), (40, 1.5)]


def test_the_best_is_the_lowest_validation_loss():
    assert best(ENTRIES) == (30, 2.5)
    assert best(ENTRIES[:2]) is None


def test_averages_keep_the_last_place_and_the_mean():
    assert averaged([(1, 2.0), (2, 4.0)], 30) == [(1, 2.0), (2, 4.0)]
    curve = [(float(n), float(n)) for n in range(1, 61)]
    assert averaged(curve, 30)[0] == (2.0, 1.5)
    assert len(averaged(curve, 30)) == 30


def test_a_spike_does_not_set_the_range():
    entries = [{"step": n, "train/loss": 2.0 - n / 100} for n in range(1, 101)]
    entries[50]["train/loss"] = 50.0
    low, high = loss_range(entries)
    assert low == 1.0 and high < 5


@pytest.mark.parametrize("heights", [[], [0.5], [0.5, 0.5, 0.5], [1.0, 0.99, 0.98], [0.0, 0.9]])
def test_labels_are_spread_in_their_order(heights):
    placed = spread(heights, 0.1)
    assert all(0 <= y <= 1 for y in placed)
    in_order = sorted(zip(heights, placed, strict=True))
    assert all(b - a > 0.0999 for (_, a), (_, b) in itertools.pairwise(in_order))


@pytest.mark.parametrize(
    ("seconds", "unit"), [(100, "seconds"), (2000, "minutes"), (20_000, "hours")]
)
def test_the_unit_of_time_follows_the_longest_run(seconds, unit):
    assert time_unit(seconds)[0] == unit
