"""The pictures: the loss curve of a run, and several runs compared. The only module that draws.

Training losses are thin and light, validation losses thick. Labels stand beside the ends of the
curves. The loss axis shows the part that matters: neither the first steps nor a run that diverged
flatten the rest; what lies above is marked at the upper edge.
"""

import itertools
import logging
import math
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt_jax.config import Config
from gpt_jax.files import replacing
from gpt_jax.training import curves
from gpt_jax.training.curves import Entries, Points, best, points
from gpt_jax.training.display import shortened
from gpt_jax.training.log import elapsed_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart, without the pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
STYLES = ("-", "--", ":", "-.")  # The next one when the colours repeat.
LOOKS = [{"color": color, "ls": style} for style in STYLES for color in PALETTE]
INK, GREY = "#222222", "#6E6E6E"
KEYS = {"training": "train/loss", "validation": "val/loss"}
LINES: dict[str, dict[str, Any]] = {
    "training": {"lw": 0.9, "alpha": 0.5, "zorder": 2},
    "validation": {"lw": 2.4, "zorder": 3, "solid_capstyle": "round"},
}
NOTE: dict[str, Any] = {
    "textcoords": "offset points",
    "fontsize": 10,
    "bbox": {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
}
# Matplotlib's settings: a light grid without a frame; a dollar sign in a name begins no formula.
SETTINGS: Any = {
    **{"figure.dpi": 120, "font.size": 11, "text.color": INK, "text.parse_math": False},
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4"},
    **{"axes.labelcolor": GREY, "axes.titlecolor": GREY},
    **{"axes.titlesize": 11, "axes.titlelocation": "left"},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **{f"{axis}tick.labelsize": 10 for axis in "xy"},
    **{f"{axis}tick.color": GREY for axis in "xy"},
}
NAMES = {"tinyshakespeare": "Tiny Shakespeare", "builtin": "the built-in play"}
CAPTIONS = {"training": "training loss (thin, averaged)", "validation": "validation loss (thick)"}
METRICS = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/corpus_loss": "loss on the corpus, nats per token",
    "reward": "training reward",
    "val/reward": "validation reward",
    "kl": "KL from the reference, nats per token",
    "rewards/chosen": "reward of chosen answers",
    "rewards/rejected": "reward of rejected answers",
}
POINTS = 150  # Of all training curves in a picture. More is fuzz, and large files.
CROWD = 6  # More runs than this are compared without their training losses.


class Label(NamedTuple):
    """A text beside the end of a curve, at the height of its loss `y`; how its line looks."""

    y: float
    text: str
    looks: Mapping[str, Any]


def draw_loss_curve(
    entries: Entries, config: Config, path: Path, name: str, source_loss: float | None = None
) -> None:
    """Draws training and validation loss against steps into a PNG file, the best one marked.

    Args:
      entries: lines of metrics.jsonl.
      name: of the run, for the title.
      source_loss: entropy of the text's own source, in nats per token, if it is known.
    """
    c = config.data
    with _saved_figure(path, 8, 4.6) as figure:
        axes = figure.add_axes((0.06, 0.12, 0.69, 0.67))
        found = _draw_run(axes, entries, "step", LOOKS[0], POINTS)
        labels = [label._replace(text=f"{kind} {label.y:.4f}") for kind, label in found.items()]
        _set_loss_range(axes, [entries], [] if source_loss is None else [source_loss])
        labels += _reference_lines(axes, config.model.vocab_size, source_loss)
        _mark_start(axes, points(entries, "step", "train/loss"))
        _mark_best(axes, entries)
        _finish(axes, "training steps", f"nats per {curves.unit(c.tokenizer)}")
        _place_labels(axes, labels)
        text = shortened(NAMES.get(c.corpus, Path(c.corpus).name), 30)
        _write_title(figure, name, f"{_caption(found)} on {text}")


def draw_comparison(runs: Mapping[str, Entries], path: Path, unit: str = "nats per token") -> None:
    """Draws the losses of runs, by name, against steps and against time into a PNG file.

    `unit`: of the losses.
    """
    time, per = curves.time_unit(max(map(elapsed_s, runs.values())))
    is_crowd = len(runs) > CROWD
    runs = {name: _validation_only(run) if is_crowd else run for name, run in runs.items()}
    labels = []
    with _saved_figure(path, 10, 5) as figure:
        left = figure.add_axes((0.05, 0.11, 0.34, 0.69))
        right = figure.add_axes((0.425, 0.11, 0.34, 0.69), sharey=left)
        most, looks = math.ceil(POINTS / len(runs)), itertools.cycle(LOOKS)
        for (name, entries), look in zip(runs.items(), looks, strict=False):
            found = _draw_run(left, entries, "step", look, most)
            _draw_run(right, entries, "elapsed_s", look, most, per)
            if label := found.get("validation") or found.get("training"):
                labels.append(label._replace(text=name))
        _set_loss_range(left, list(runs.values()))
        _finish(left, "training steps", unit)
        _finish(right, f"{time} of training", "")
        right.tick_params(labelleft=False)
        _place_labels(right, labels)
        title = f"{len(runs)} runs" if len(runs) > 1 else "".join(runs)
        _write_title(figure, title, "validation loss" if is_crowd else _caption(CAPTIONS))


def draw_panels(entries: Entries, panels: Sequence[Sequence[str]], path: Path, name: str) -> None:
    """Draws metrics of a tuned run against steps into a PNG file, a panel for each group of keys.

    The first panel is what was optimised. A panel without figures is left out.
    """
    found = [[key for key in keys if points(entries, "step", key)] for keys in panels]
    found = [keys for keys in found if keys] or [[]]
    with _saved_figure(path, 4.4 * len(found), 4.2) as figure:
        figure.subplots_adjust(left=0.2 / len(found), right=0.98, top=0.74, bottom=0.13, wspace=0.2)
        for n, keys in enumerate(found):
            axes = figure.add_subplot(1, len(found), n + 1)
            for key, look in zip(keys, LOOKS, strict=False):
                curve = curves.averaged(points(entries, "step", key), POINTS)
                marker = "o" if len(curve) < CROWD else ""
                label = METRICS.get(key, key)
                looks: dict[str, Any] = {"lw": 2, "ms": 4, **look}
                axes.plot(*zip(*curve, strict=True), marker=marker, label=label, **looks)
            _finish(axes, "training steps", "not optimised" if n else "optimised")
            axes.legend(frameon=False, fontsize=9) if keys else None
        _write_title(figure, name, "tuning")


@contextmanager
def _saved_figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """A figure of this size in inches, saved as a PNG file at the end of the block."""
    _load_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # Such as Chinese names.
        figure = Figure(figsize=(width, height))
        yield figure
        with replacing(path) as file:
            figure.savefig(file, format="png", facecolor="white", pil_kwargs={"optimize": True})


def _load_matplotlib() -> None:
    """Imports matplotlib, even if MPLBACKEND names no backend. A Figure needs none.

    The import takes half a second, so it does not come before training.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # It warns if its cache folder cannot be written.
    import matplotlib

    logger.setLevel(level)
    if backend:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # As the import does, for a notebook.


def _validation_only(entries: Entries) -> Entries:
    """The entries without their training losses, unless there are no others."""
    if best(entries) is None:
        return entries
    return [dict(entry) | {"train/loss": None} for entry in entries]


def _draw_run(
    axes: "Axes", entries: Entries, x: str, look: dict[str, Any], most: int, per: float = 1.0
) -> dict[str, Label]:
    """Draws the two curves of a run, against `x` / `per`. Returns their labels by kind."""
    labels = {}
    for kind, key in KEYS.items():
        found = [(a / per, b) for a, b in points(entries, x, key)]
        if not found:
            continue
        found = curves.averaged(found, most) if kind == "training" else found
        looks = look | LINES[kind]
        marker = "o" if len(found) == 1 else ""
        axes.plot(*zip(*found, strict=True), label=kind, marker=marker, ms=4, **looks)
        labels[kind] = Label(found[-1][1], kind, looks)
    return labels


def _set_loss_range(axes: "Axes", runs: Sequence[Entries], others: Sequence[float] = ()) -> None:
    """Shows the losses of all runs that matter, and `others`."""
    if shown := curves.common_range(runs):
        low, high = min(*shown, *others), shown[1]
        margin = 0.06 * (high - low) or max(0.1, abs(high) / 1000)
        axes.set_ylim(low - margin, high + 1.5 * margin)


def _mark_start(axes: "Axes", training: Points) -> None:
    """Says at the upper edge where the training loss begins, if it begins above."""
    top = axes.get_ylim()[1]
    if training and training[0][1] > top:
        inside = next((step for step, loss in training if loss < top), training[-1][0])
        text = f"\u2191 {training[0][1]:.2f} at step {training[0][0]:,.0f}"
        axes.annotate(text, (inside, top), (8, -10), **NOTE)


def _reference_lines(axes: "Axes", vocab_size: int, source_loss: float | None) -> list[Label]:
    """Lines for the text's own source and for guessing evenly, those that are in the picture."""
    lines = [("guessing", math.log(vocab_size), ":"), ("play's entropy", source_loss, "--")]
    low, high = axes.get_ylim()
    labels = []
    for name, loss, ls in lines:
        if loss is not None and (low <= loss <= high or not axes.lines):
            looks: dict[str, Any] = {"color": GREY, "ls": ls, "lw": 1.2}
            axes.axhline(loss, zorder=1, **looks)
            labels.append(Label(loss, f"{name} {loss:.4f}", looks))
    return labels


def _mark_best(axes: "Axes", entries: Entries) -> None:
    """Marks the lowest validation loss, with its value unless the last step has it."""
    validation, found = points(entries, "step", "val/loss"), best(entries)
    if not found:
        return
    step, loss = found
    axes.plot(step, loss, "o", ms=7, mfc="white", mec=PALETTE[0], mew=2, zorder=4, label="best")
    if step == validation[-1][0]:
        axes.annotate("best", found, (0, 10), ha="center", **NOTE)
    else:
        side = "right" if step > 0.6 * validation[-1][0] else "left"
        axes.annotate(f"best {loss:.4f} at step {step:,}", found, (6, -20), ha=side, **NOTE)


def _finish(axes: "Axes", xlabel: str, ylabel: str) -> None:
    """Names the axes and chooses their ticks."""
    last = axes.dataLim.x1 if axes.dataLim.x1 > 0 else 1.0  # Without data: minus infinity.
    axes.set(xlim=(-0.01 * last, 1.015 * last), xlabel=xlabel, title=ylabel)
    axes.locator_params(nbins=6, steps=(1, 2, 2.5, 5, 10))
    axes.locator_params("x", integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _place_labels(axes: "Axes", labels: list[Label]) -> None:
    """Writes the labels to the right of the axes, each behind a piece of its line."""
    low, high = axes.get_ylim()
    size = min(11.0, 200 / max(1, len(labels)))  # 200 points of text fit beside the axes.
    heights = [min(1.0, max(0.0, (label.y - low) / (high - low))) for label in labels]
    place = axes.transAxes
    for label, y in zip(labels, curves.spread(heights, size / 200), strict=True):
        above = f" \u2191 {label.y:.1f}" if label.y > high else ""
        text = shortened(label.text, 24 - len(above)) + above
        axes.plot([1.015, 1.05], [y, y], clip_on=False, transform=place, **label.looks)
        color = label.looks["color"]
        axes.text(1.065, y, text, size=size, color=color, va="center_baseline", transform=place)


def _caption(kinds: Collection[str]) -> str:
    """What the curves are."""
    return " and ".join(text for kind, text in CAPTIONS.items() if kind in kinds)


def _write_title(figure: "Figure", name: str, caption: str) -> None:
    figure.text(0.02, 0.93, shortened(name, 50), size=16, weight="bold")
    figure.text(0.02, 0.87, caption, color=GREY)
