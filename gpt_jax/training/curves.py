"""Numbers and words for the pictures: curves, ranges, places of labels. Draws nothing."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Entries = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]

NAMES = {"tinyshakespeare": "Tiny Shakespeare", "builtin": "the built-in play"}
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


def validation_only(entries: Entries) -> Entries:
    """The entries without their training losses, unless there are no others."""
    if best(entries) is None:
        return entries
    return [dict(entry) | {"train/loss": None} for entry in entries]


def averaged(found: Points, most: int) -> Points:
    """Means of as many neighbours as leave at most about `most` points."""
    size = -(-len(found) // max(20, most))
    groups = [found[i : i + size] for i in range(0, len(found), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def loss_range(entries: Entries) -> tuple[float, float] | None:
    """The losses to show of one run: validation, and training after a tenth of the steps."""
    training = points(entries, "step", "train/loss")
    first = training[-1][0] / 10 if training else 0
    curves = [
        [loss for _, loss in points(entries, "step", "val/loss")],
        [loss for step, loss in training if step > first],
    ]
    curves = [sorted(losses) for losses in curves if losses]
    if not curves:
        return None
    low = min(losses[0] for losses in curves)
    return low, max(_without_spikes(losses, low) for losses in curves)


def _without_spikes(losses: list[float], low: float) -> float:
    """The highest of sorted losses, but at most four times as far from `low` as three quarters."""
    upper_quarter = losses[(3 * len(losses) - 1) // 4]
    return min(losses[-1], low + 4 * (upper_quarter - low))


def common_range(runs: Sequence[Entries]) -> tuple[float, float] | None:
    """The losses to show of several runs.

    A run that goes above twice the lowest loss, and three times the height of the best run, has
    diverged: only its lower part is shown, as high as the best run's.
    """
    ranges = sorted(found for run in runs if (found := loss_range(run)))
    if not ranges:
        return None
    low, high = ranges[0]
    limit = max(2 * low, low + 3 * (high - low))
    tops = [top if top <= limit else min(limit, least + high - low) for least, top in ranges]
    return low, max(tops)


def spread(heights: list[float], gap: float) -> list[float]:
    """The heights, moved as little as is needed to be `gap` apart and inside [0, 1]."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [heights[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    if placed and placed[-1] > 1:
        placed[-1] = 1.0
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    return [y for _, y in sorted(zip(order, placed, strict=True))]


def shortened(text: str, width: int) -> str:
    """The text, with its middle left out if it is longer than `width`."""
    if len(text) <= width:
        return text
    half = (width - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def text_name(corpus: str) -> str:
    """A corpus in the caption: its title, or the last part of its path."""
    return shortened(NAMES.get(corpus, Path(corpus).name), 30)


def unit(tokenizer: str) -> str:
    """What a token is: "character", "byte" or "token"."""
    return UNITS.get(tokenizer, "token")


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit for the axis of time, and its seconds."""
    if seconds > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)
