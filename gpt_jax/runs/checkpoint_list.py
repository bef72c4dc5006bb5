"""Which checkpoints a run has, and which one a name means. No jax."""

import dataclasses
from pathlib import Path

from gpt_jax.errors import UserError


def newest_run(runs: Path) -> Path:
    """The folder in `runs` whose newest checkpoint was saved last.

    Raises:
      UserError: when there is none.
    """
    saved = {
        workdir: max(map(_saved_at, steps))
        for workdir in runs.glob("*")
        if (steps := checkpoint_folders(workdir))
    }
    if not saved:
        raise UserError(
            f"there is no run with a checkpoint in {runs.absolute()}: train one "
            "(scripts/train.py), or name its folder with --workdir"
        )
    return max(saved, key=lambda workdir: saved[workdir])


def _saved_at(folder: Path) -> float:
    """When a folder was last changed; long ago if it was removed meanwhile."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def checkpoint_folders(workdir: Path) -> list[Path]:
    """The folders of a run's checkpoints; an unfinished one has another name than its number."""
    return [path for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdecimal()]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint: its step, and its held-out loss in nats per token (inf: not measured)."""

    step: int
    val_loss: float


def chosen(saved: list[Saved], which: str, folder: Path) -> Saved:
    """The checkpoint, of those saved in `folder`, that `which` names, see `Checkpoints.find`."""
    if not saved:
        raise no_checkpoint(folder)
    if which == "latest":
        return saved[-1]
    if which == "best":
        return min(saved, key=lambda one: (one.val_loss, -one.step))
    for one in saved:
        if str(one.step) == which:
            return one
    steps = ", ".join(str(one.step) for one in saved)
    raise UserError(f"{folder} has no step {which!r}: choose best, latest or one of {steps}")


def no_checkpoint(folder: Path) -> UserError:
    """What a reader is told of a folder without any."""
    return UserError(f"{folder} holds no checkpoint: train first (scripts/train.py)")
