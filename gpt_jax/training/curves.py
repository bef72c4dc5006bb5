"""Numbers and words for the pictures: curves, ranges, places of labels. Draws nothing."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

Entries = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]

LOSSES = ("train/loss", "val/loss")
MOST_BITS = 1000  # Bits per byte for a nat per token. A token of a whole byte has 1.4.
UNITS = {"char": "character", "byte": "byte"}


def points(entries: Entries, x: str, y: str) -> Points:
    """The pairs (x, y) of the lines of metrics.jsonl that have a finite number for both."""
    pairs = [(entry.get(x), entry.get(y)) for entry in entries]
    return [(a, b) for a, b in pairs if a is not None and b is not None and math.isfinite(a + b)]


def best(entries: Entries) -> tuple[int, float] | None:
    """Step and loss of the lowest validation loss; None if there was no evaluation."""
    validation = points(entries, "step", "val/loss")
    if not validation:
        return None
    step, loss = min(validation, key=lambda point: point[1])
    return int(step), loss


def in_bits_per_byte(entries: Entries) -> list[dict[str, Any]] | None:
    """The lines with their losses, nats per token, converted to bits per byte of the text.

    The ratio is that of the first evaluation. None if no line has both units, as in older logs.
    """
    for loss, bits in points(entries, "val/loss", "val/bits_per_byte"):
        if loss > 0 and 0 < (ratio := bits / loss) < MOST_BITS:
            return [_scaled(entry, ratio) for entry in entries]
    return None


def _scaled(entry: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    losses = {key: entry[key] for key in LOSSES if entry.get(key) is not None}
    return {**entry, **{key: loss * ratio for key, loss in losses.items()}}


def averaged(found: Points, most: int) -> Points:
    """At most `most` points, each the mean of its neighbours, at the place of the last of them."""
    size = max(1, math.ceil(len(found) / most))
    groups = [found[i : i + size] for i in range(0, len(found), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def loss_range(entries: Entries) -> tuple[float, float] | None:
    """The losses to show of one run: validation, and training after a tenth of the steps.

    A spike is cut off at four times the height of three quarters of the losses.
    """
    training = points(entries, "step", "train/loss")
    late = [loss for step, loss in training if step > training[-1][0] / 10]
    validation = [loss for _, loss in points(entries, "step", "val/loss")]
    curves = [sorted(losses) for losses in (validation, late) if losses]
    if not curves:
        return None
    low = min(curve[0] for curve in curves)
    quarters = [curve[(3 * len(curve) - 1) // 4] for curve in curves]
    limits = [low + 4 * (quarter - low) for quarter in quarters]
    return low, max(min(curve[-1], top) for curve, top in zip(curves, limits, strict=True))


def common_range(runs: Sequence[Entries]) -> tuple[float, float] | None:
    """The losses to show of several runs, without those that diverged.

    A run has diverged if it goes above twice the lowest loss and above three times the height of
    the best run.
    """
    ranges = sorted(found for run in runs if (found := loss_range(run)))
    if not ranges:
        return None
    low, high = ranges[0]
    limit = max(2 * low, low + 3 * (high - low))
    return low, max([high, *(top for _, top in ranges if top <= limit)])


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved as little as is needed to be `gap` apart and at most 1."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for below, i in itertools.pairwise(order):
        placed[i] = max(placed[i], placed[below] + gap)
    top = 1.0
    for i in reversed(order):
        placed[i] = min(placed[i], top)
        top = placed[i] - gap
    return placed


def unit(tokenizer: str) -> str:
    """What a token is: "character", "byte" or "token"."""
    return UNITS.get(tokenizer, "token")


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit for the axis of time, and its seconds."""
    if seconds > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)
