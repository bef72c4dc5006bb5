"""Which checkpoints a run has, and which one a name means. No jax."""

import dataclasses
from pathlib import Path

from gpt_jax.errors import UserError


def newest_run(runs: Path) -> Path:
    """The folder in `runs` with the checkpoint saved last. Raises UserError if there is none."""
    times = {
        workdir: max(map(_save_time, folders))
        for workdir in runs.glob("*")
        if (folders := checkpoint_folders(workdir))
    }
    if not times:
        raise UserError(
            f"there is no run with a checkpoint in {runs.absolute()}: train one "
            "(scripts/train.py), or name its folder with --workdir"
        )
    return max(times, key=lambda workdir: times[workdir])


def _save_time(folder: Path) -> float:
    """When the folder last changed; 0 if it was removed in the meantime."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def checkpoint_folders(workdir: Path) -> list[Path]:
    """The folders of a run's checkpoints. The name of an unfinished one is not a plain number."""
    return [path for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdecimal()]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes:
      step: finished updates.
      val_loss: validation loss in nats per token; inf: not measured, not finite or not known.
      is_known: False if a loss was stored, but neither it nor the log can be read any more.
    """

    step: int
    val_loss: float
    is_known: bool = True


def best(checkpoints: list[Saved]) -> Saved:
    """The checkpoint with the lowest known validation loss; of equals, the newest."""
    return min(checkpoints, key=lambda saved: (saved.val_loss, -saved.step))


def choose(checkpoints: list[Saved], which: str, folder: Path) -> Saved:
    """The checkpoint that `which` names.

    Args:
      checkpoints: oldest first; `folder` holds them.
      which: "latest", "best" (by validation loss; of equals, the newest) or the number of a step.

    Raises:
      UserError: if there is none.
    """
    if not checkpoints:
        raise no_checkpoint(folder)
    if which == "latest":
        return checkpoints[-1]
    if which == "best":
        return _certainly_best(checkpoints, folder)
    for saved in checkpoints:
        if str(saved.step) == which:
            return saved
    *others, last = (str(saved.step) for saved in checkpoints)
    steps = f"the only step is {last}"
    if others:
        steps = f"the steps are {', '.join(others)} and {last}"
    raise UserError(f"{folder} has no step {which!r}: {steps}; give a step, best or latest")


def _certainly_best(checkpoints: list[Saved], folder: Path) -> Saved:
    for saved in checkpoints:
        if not saved.is_known:
            raise UserError(
                f"the best checkpoint of {folder} is not known, because the loss of step "
                f"{saved.step} cannot be read: choose latest or the number of a step"
            )
    return best(checkpoints)


def no_checkpoint(folder: Path) -> UserError:
    """The error for a folder without checkpoints."""
    return UserError(f"{folder} holds no checkpoint: train first (scripts/train.py)")
