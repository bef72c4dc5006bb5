"""The pictures: the loss curve of a run, and several runs compared. The only module that draws."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entries = Sequence[Mapping[str, Any]]

TRAIN: dict[str, Any] = {"alpha": 0.5, "lw": 1}
HELD_OUT: dict[str, Any] = {"marker": "o", "ms": 3}


def points(entries: Entries, x: str, y: str) -> list[tuple[float, float]]:
    """The pairs (x, y) of the lines of metrics.jsonl that have a number for both."""
    pairs = [(entry.get(x), entry.get(y)) for entry in entries]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def best(entries: Entries) -> tuple[int, float] | None:
    """Step and loss of the smallest held-out loss; None where nothing was evaluated."""
    held_out = points(entries, "step", "val/loss")
    if not held_out:
        return None
    step, loss = min(held_out, key=lambda point: point[1])
    return int(step), loss


def draw_loss_curve(
    entries: Entries, vocab_size: int, path: Path, source_loss: float | None = None
) -> None:
    """Draws training and held-out loss against steps into a PNG file, the best one marked.

    Args:
      entries: lines of metrics.jsonl.
      vocab_size: guessing evenly among so many tokens costs ln(vocab_size) nats, a line.
      source_loss: what the text's own source pays, in nats per token, another line.
    """
    from matplotlib.figure import Figure  # Half a second that the first step need not wait for.

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    _plot(axes, points(entries, "step", "train/loss"), label="train", **TRAIN)
    _plot(axes, points(entries, "step", "val/loss"), label="held out", **HELD_OUT)
    if found := best(entries):
        step, loss = found
        axes.plot(step, loss, "*", ms=12, color="C3", label=f"best: {loss:.4f} at step {step:,}")
    axes.axhline(math.log(vocab_size), color="grey", ls=":", label=f"guessing: ln {vocab_size}")
    if source_loss is not None:
        label = f"the play's own grammar: {source_loss:.4f}"
        axes.axhline(source_loss, color="C2", ls="--", label=label)
    _finish(axes, "step")
    figure.savefig(path, dpi=120, format="png")


def draw_comparison(runs: Mapping[str, Entries], path: Path) -> None:
    """Draws the losses of runs, by name, against steps and against seconds into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for number, (x, label) in enumerate([("step", "step"), ("elapsed_s", "seconds")], start=1):
        axes = figure.add_subplot(1, 2, number)
        for color, (name, entries) in enumerate(runs.items()):
            color_name = f"C{color % 10}"
            held_out = points(entries, x, "val/loss")
            train_name = None if held_out else f"{name} (train)"
            _plot(
                axes, points(entries, x, "train/loss"), color=color_name, label=train_name, **TRAIN
            )
            _plot(axes, held_out, color=color_name, label=name, **HELD_OUT)
        _finish(axes, label)
    figure.savefig(path, dpi=120, format="png")


def _plot(axes: "Axes", pairs: list[tuple[float, float]], **style: Any) -> None:
    if pairs:
        axes.plot(*zip(*pairs, strict=True), **style)


def _finish(axes: "Axes", xlabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
