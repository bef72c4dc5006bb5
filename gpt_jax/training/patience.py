"""When a run ends: after `train.steps`, or earlier, when its patience has run out. No jax.

Patience runs out after `train.patience` evaluations in a row without a lower validation loss. The
count is a function of the log, so a run that resumes ends after the same step as one that was
never stopped.
"""

import math
from collections.abc import Iterable
from pathlib import Path

from gpt_jax.config import TrainConfig
from gpt_jax.training.log import read_metrics, val_losses


def evaluations_without_progress(losses: Iterable[float | None]) -> int:
    """How many of the last evaluations found no loss below all earlier ones.

    Args:
      losses: of all evaluations, oldest first; None or NaN = not finite.
    """
    lowest, count = math.inf, 0
    for loss in losses:
        if loss is not None and loss < lowest:
            lowest, count = loss, 0
        else:
            count += 1
    return count


def last_step(workdir: Path, c: TrainConfig, until: float = math.inf) -> int:
    """The step after which the run in `workdir` ends, as far as its log says by now.

    `until`: later lines of the log do not count.
    """
    if not c.patience:
        return c.steps
    entries = read_metrics(workdir / "metrics.jsonl")
    losses = val_losses(entry for entry in entries if entry["step"] <= until)
    ran_out = evaluations_without_progress(losses.values()) >= c.patience
    return max(losses) if ran_out else c.steps
