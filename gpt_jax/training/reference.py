"""The parameters with which a tuned run began, kept in its folder: reference/checkpoints/0/.

They are arrays of their own, so training cannot change them, and the run resumes without what it
began from.
"""

from pathlib import Path
from typing import Any

from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.training.state import TrainState


def _folder(workdir: Path) -> Path:
    return workdir / "reference" / "checkpoints"


def keep_reference(workdir: Path, state: TrainState) -> None:
    """Saves the parameters of the state before the first update. Raises UserError if it cannot."""
    with Checkpoints.for_training(_folder(workdir)) as checkpoints:
        checkpoints.save(0, state.replace(opt_state=(), average=()))
        checkpoints.confirm(0)


def read_reference(workdir: Path, abstract: TrainState) -> Any:
    """The parameters that `keep_reference` saved, laid out as `abstract.params` says.

    Raises UserError if they are missing or damaged.
    """
    with Checkpoints.for_reading(_folder(workdir)) as checkpoints:
        return checkpoints.restore(0, {"params": abstract.params})["params"]
