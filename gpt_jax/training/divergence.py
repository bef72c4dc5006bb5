"""Whether a run has diverged, and from which checkpoint it can then resume.

A step whose loss or gradient is not finite is only skipped (step.py). A run has diverged after
`train.max_skipped` of them in a row, or if any array of the state that it is about to save is not
finite: NaN stays NaN.
"""

import math
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.training.run import Run
from gpt_jax.training.state import TrainState


def check_steps(run: Run, checkpoints: Checkpoints, step: int, state: TrainState) -> None:
    """Raises UserError after `train.max_skipped` steps in a row that were not finite."""
    most, skipped = run.config.train.max_skipped, int(state.skipped_in_a_row)
    if skipped >= most:
        _end(
            f"{skipped} steps in a row up to step {step} had a loss or a gradient that is not "
            f"finite (train.max_skipped = {most}); {run.objective.describe(step - 1)}",
            checkpoints,
            step,
            state,
        )


def check_arrays(checkpoints: Checkpoints, step: int, state: TrainState) -> None:
    """Raises UserError, with the name of an array, if one of the state's is not finite.

    Reads the whole state on the devices, so it is for saves only.
    """
    finite, _ = jax.tree.flatten_with_path(_are_finite(state))
    if broken := [path for path, is_finite in finite if not is_finite]:
        name = jax.tree_util.keystr(broken[0], simple=True, separator="/")
        _end(f"after step {step}, {name} holds NaN or infinity", checkpoints, step, state)


@jax.jit
def _are_finite(state: TrainState) -> Any:
    """Whether all numbers of each array are finite; only for arrays of floating-point numbers."""
    arrays = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, state)
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), arrays)


def _end(what: str, checkpoints: Checkpoints, step: int, state: TrainState) -> NoReturn:
    """Raises UserError with the way to go on; `what` says what is not finite after `step`.

    A checkpoint is good if a later step had a finite loss and gradient, or if its validation loss
    is finite. That loss says nothing about parameters which are not evaluated, but their average.
    """
    last_finite, saved = step - int(state.skipped_in_a_row), checkpoints.all()
    good = [
        one.step
        for one in saved
        if one.step < last_finite or (math.isfinite(one.val_loss) and not state.average)
    ]
    bad = " and ".join(str(checkpoints.path(one.step)) for one in saved if one.step not in good)
    raise UserError(
        f"{what}; the last good checkpoint is {good[-1] if good else 'none'}: "
        + (f"remove {bad}, which diverged, then " if bad else "")
        + ("resume from it" if good else "begin again")
        + " with a lower --config.optimizer.learning_rate and "
        "--resume_allow=optimizer.learning_rate"
    )
