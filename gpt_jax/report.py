"""The pictures of a run. The only module that draws."""

import math
from pathlib import Path
from typing import Any

STYLES: dict[str, dict[str, Any]] = {
    "train/loss": {"alpha": 0.5, "lw": 1},
    "val/loss": {"marker": "o", "ms": 3},
}


def draw_loss_curve(entries: list[dict[str, Any]], vocab_size: int, path: Path) -> None:
    """Draws training and held-out loss against steps, and the loss of guessing, into a PNG file.

    Args:
      entries: lines of metrics.jsonl.
      vocab_size: guessing evenly among so many tokens costs ln(vocab_size) nats.
    """
    from matplotlib.figure import Figure  # Half a second that the first step need not wait for.

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for key, style in STYLES.items():
        points = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=key, **style)
    axes.axhline(math.log(vocab_size), color="grey", ls=":", label=f"guessing: ln {vocab_size}")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
