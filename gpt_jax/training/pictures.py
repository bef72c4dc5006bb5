"""The pictures: the loss curve of a run, and several runs compared. The only module that draws.

Training losses are thin and light, validation losses thick. Labels stand beside the ends of the
curves. The loss axis shows the part that matters: neither the first steps nor a run that diverged
flatten the rest; what lies above is marked at the upper edge.
"""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt_jax.training.curves import (
    Entries,
    Points,
    averaged,
    best,
    common_range,
    points,
    shortened,
    spread,
    text_name,
    time_unit,
    validation_only,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart, without the pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
STYLES = ("-", "--", ":", "-.")  # The next one when the colours repeat.
INK, GREY = "#222222", "#6E6E6E"
LOOKS: dict[str, dict[str, Any]] = {
    "training": {"lw": 0.9, "alpha": 0.5, "zorder": 2},
    "validation": {"lw": 2.4, "zorder": 3, "solid_capstyle": "round"},
}
NOTE: dict[str, Any] = {
    "fontsize": 10,
    "color": INK,
    "bbox": {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
}
CAPTIONS = {
    "training": "training loss (thin, averaged)",
    "validation": "validation loss (thick)",
}
POINTS = 150  # Of a training curve; of all of them in a comparison. More is fuzz, and large files.
CROWD = 6  # More runs than this are compared without their training losses.
ROUND = (1, 2, 2.5, 5, 10)  # First digits of the distance between ticks.
DPI = 120


class Label(NamedTuple):
    """A text beside the end of a curve, at the height of its loss `y`."""

    y: float
    text: str
    looks: Mapping[str, Any]


def draw_loss_curve(
    entries: Entries,
    vocab_size: int,
    path: Path,
    source_loss: float | None = None,
    name: str = "",
    text: str = "",
    unit: str = "token",
) -> None:
    """Draws training and validation loss against steps into a PNG file, the best one marked.

    Args:
      entries: lines of metrics.jsonl.
      vocab_size: guessing evenly among this many tokens costs ln(vocab_size) nats.
      source_loss: entropy of the text's own source, in nats per token, if it is known.
      name: of the run, for the title; text: its corpus; unit: what a token is.
    """
    from matplotlib.figure import Figure  # It takes half a second, so not before training.

    figure = Figure(figsize=(8, 4.6), dpi=DPI)
    axes = figure.add_axes((0.06, 0.12, 0.69, 0.67))
    labels = _draw_run(axes, entries, "step", PALETTE[0])
    named = [label._replace(text=f"{kind} {label.y:.4f}") for kind, label in labels.items()]
    found, last = best(entries), points(entries, "step", "val/loss")[-1:]
    _set_loss_range(axes, [entries], [] if source_loss is None else [source_loss])
    named += _reference_lines(axes, vocab_size, source_loss)
    _mark_start(axes, points(entries, "step", "train/loss"))
    if found:
        _mark_best(axes, *found, last[0][0])
    _finish(axes, "training steps", f"nats per {unit}")
    _place_labels(axes, named)
    about = f" on {text_name(text)}" if text else ""
    _title(figure, name or "Loss", _caption(labels) + about)
    _save(figure, path)


def draw_comparison(runs: Mapping[str, Entries], path: Path, unit: str = "token") -> None:
    """Draws the losses of runs, by name, against steps and against time into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=DPI)
    left = figure.add_axes((0.05, 0.11, 0.34, 0.69))
    right = figure.add_axes((0.425, 0.11, 0.34, 0.69), sharey=left)
    time, per = time_unit(max((run[-1]["elapsed_s"] for run in runs.values() if run), default=0))
    is_crowd = len(runs) > CROWD
    runs = {name: validation_only(run) if is_crowd else run for name, run in runs.items()}
    most = POINTS // max(1, len(runs))
    labels = []
    for number, (name, entries) in enumerate(runs.items()):
        color = PALETTE[number % len(PALETTE)]
        style = STYLES[number // len(PALETTE) % len(STYLES)]
        found = _draw_run(left, entries, "step", color, style, most)
        _draw_run(right, entries, "elapsed_s", color, style, most, per)
        if label := found.get("validation") or found.get("training"):
            labels.append(label._replace(text=name))
    _set_loss_range(left, list(runs.values()))
    _finish(left, "training steps", f"nats per {unit}")
    _finish(right, f"{time} of training", "")
    right.tick_params(labelleft=False)
    _place_labels(right, labels)
    caption = "validation loss" if is_crowd else _caption(set(CAPTIONS))
    _title(figure, f"{len(runs)} runs" if len(runs) > 1 else "".join(runs), caption)
    _save(figure, path)


def _draw_run(
    axes: "Axes",
    entries: Entries,
    x: str,
    color: str,
    style: str = "-",
    most: int = POINTS,
    per: float = 1.0,
) -> dict[str, Label]:
    """Draws the two curves of a run, against `x` / `per`. Returns their labels."""
    labels = {}
    for kind, key in (("training", "train/loss"), ("validation", "val/loss")):
        found = [(a / per, b) for a, b in points(entries, x, key)]
        if not found:
            continue
        found = averaged(found, most) if kind == "training" else found
        looks: dict[str, Any] = {"color": color, "ls": style, **LOOKS[kind]}
        marker: dict[str, Any] = {"marker": "o", "ms": 4} if len(found) == 1 else {}
        axes.plot(*zip(*found, strict=True), label=kind, **looks, **marker)
        labels[kind] = Label(found[-1][1], kind, looks)
    return labels


def _set_loss_range(axes: "Axes", runs: Sequence[Entries], others: Sequence[float] = ()) -> None:
    """Shows the losses of all runs that matter, and `others`."""
    if shown := common_range(runs):
        low, high = min(shown[0], *others, shown[1]), shown[1]
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + 1.5 * margin)


def _mark_start(axes: "Axes", training: Points) -> None:
    """Says at the upper edge where the training loss begins, if it begins above."""
    top = axes.get_ylim()[1]
    if training and training[0][1] > top:
        inside = next((step for step, loss in training if loss < top), training[-1][0])
        text = f"\u2191 {training[0][1]:.2f} at step {training[0][0]:,.0f}"
        axes.annotate(text, (inside, top), (8, -10), textcoords="offset points", **NOTE)


def _reference_lines(axes: "Axes", vocab_size: int, source_loss: float | None) -> list[Label]:
    """Lines for guessing, if it is in the picture, and for the text's own source."""
    guessing = math.log(vocab_size)
    lines = [(guessing, f"guessing {guessing:.4f}", ":")]
    if source_loss is not None:
        lines.append((source_loss, f"play's entropy {source_loss:.4f}", "--"))
    low, high = axes.get_ylim()
    labels = []
    for loss, text, ls in lines:
        if low <= loss <= high or not axes.lines:
            axes.axhline(loss, color=GREY, ls=ls, lw=1.2, zorder=1)
            labels.append(Label(loss, text, {"color": GREY, "ls": ls, "lw": 1.2}))
    return labels


def _mark_best(axes: "Axes", step: int, loss: float, last: float) -> None:
    """Marks the lowest validation loss, with its value unless the `last` step has it."""
    axes.plot(step, loss, "o", ms=7, mfc="white", mec=PALETTE[0], mew=2, zorder=4, label="best")
    text, where, side = f"best {loss:.4f} at step {step:,}", (6, -20), "left"
    if step == last:
        text, where, side = "best", (0, 10), "center"
    elif step > 0.6 * last:
        side = "right"
    axes.annotate(text, (step, loss), where, textcoords="offset points", ha=side, **NOTE)


def _finish(axes: "Axes", xlabel: str, ylabel: str) -> None:
    """Names the axes, and leaves nothing but a light grid around the curves."""
    from matplotlib.ticker import MaxNLocator

    last = axes.dataLim.x1 if axes.dataLim.x1 > 0 else 1.0  # Without data: minus infinity.
    axes.set_xlim(-0.01 * last, 1.015 * last)
    axes.set_xlabel(xlabel, color=GREY, fontsize=11)
    _text(axes, 0, 1.03, ylabel, size=11, color=GREY, transform=axes.transAxes)
    axes.spines[:].set_visible(False)
    axes.grid(color="#E4E4E4", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=GREY, labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def _place_labels(axes: "Axes", labels: list[Label]) -> None:
    """Writes the labels to the right of the axes, each behind a piece of its line."""
    low, high = axes.get_ylim()
    size = min(11.0, 200 / max(1, len(labels)))  # 200 points of text fit beside the axes.
    heights = [min(1.0, max(0.0, (label.y - low) / (high - low))) for label in labels]
    place: dict[str, Any] = {"transform": axes.transAxes}
    for label, y in zip(labels, spread(heights, size / 200), strict=True):
        above = f" \u2191 {label.y:.1f}" if label.y > high else ""
        text = shortened(label.text, 24 - len(above)) + above
        axes.plot([1.015, 1.05], [y, y], clip_on=False, **label.looks, **place)
        color = label.looks["color"]
        _text(axes, 1.065, y, text, size, color=color, va="center_baseline", **place)


def _caption(kinds: Collection[str]) -> str:
    """What the curves are."""
    return " and ".join(text for kind, text in CAPTIONS.items() if kind in kinds)


def _title(figure: "Figure", name: str, caption: str) -> None:
    _text(figure, 0.02, 0.93, shortened(name, 50), size=16, color=INK, weight="bold")
    _text(figure, 0.02, 0.87, caption, size=11, color=GREY)


def _text(place: Any, x: float, y: float, text: str, size: float = 10, **looks: Any) -> None:
    """Text as it is: a dollar sign begins no formula."""
    place.text(x, y, text, fontsize=size, parse_math=False, **looks)


def _save(figure: "Figure", path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # Such as Chinese names.
        figure.savefig(
            path, dpi=DPI, format="png", facecolor="white", pil_kwargs={"optimize": True}
        )
