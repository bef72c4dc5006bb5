"""Restoring a checkpoint: the newest intact one, or one that may be replaced while it is read."""

from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.runs import checkpoint_files, damage
from gpt_jax.runs.checkpoint_list import Saved, checkpoint_folders, choose
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.damage import DamagedCheckpoint

READS = 20  # A run may replace its checkpoints every second, but hardly each time one is read.


def restore_newest(checkpoints: Checkpoints, abstract: Any) -> Any | None:
    """The newest intact state, laid out as `abstract` says; None if nothing was ever saved.

    Sets aside the damaged checkpoints that are newer, and prints a note for each.

    Raises:
      UserError: if all checkpoints are damaged, the newest intact one does not fit `abstract`, or
        something prevents reading. In the last two cases it is not set aside.
    """
    for step in reversed(checkpoints.steps()):
        try:
            return _restore(checkpoints, step, abstract)
        except DamagedCheckpoint as error:
            damage.set_aside(checkpoints.path(step), error)
            checkpoints.reload()
    if damage.has_set_aside(checkpoints.folder):
        raise UserError(
            f"{checkpoints.folder} holds only damaged checkpoints, all of them set aside: copy an "
            "intact one back, or start a new run with another --workdir"
        )
    return None


def _restore(checkpoints: Checkpoints, step: int, abstract: Any) -> Any:
    """As `Checkpoints.restore`, but tries twice: damage stays, a passing fault does not."""
    try:
        return checkpoints.restore(step, abstract)
    except DamagedCheckpoint:
        damage.check_readable(checkpoints.path(step))
        return checkpoints.restore(step, abstract)


def find_for_reading(workdir: Path, which: str) -> tuple[int, str]:
    """The step of a checkpoint, and the hash of its arrays. Starts neither JAX nor Orbax.

    Args:
      which: see `choose`.

    Raises:
      UserError: if there is no such checkpoint, or its description cannot be read.
    """
    step = choose(checkpoint_files.committed(workdir), which, workdir / "checkpoints").step
    return step, checkpoint_files.digest(workdir / "checkpoints" / str(step))


def restore_for_reading(folder: Path, which: str, abstract: Any) -> tuple[Saved, Any]:
    """Chooses a checkpoint in `folder`, and restores what is evaluated of it.

    A run that trains replaces its checkpoints. If one of them is gone, the choice or the arrays may
    be wrong, so both are made again. An error is raised only if all are still there.

    Args:
      which: see `choose`.
      abstract: a state, see `Checkpoints.restore_evaluated`.

    Raises:
      UserError: as `Checkpoints.for_reading`, `find` and `restore`, or if the run replaces its
        checkpoints too fast.
    """
    for _ in range(READS):
        listed = checkpoint_folders(folder.parent)
        try:
            with Checkpoints.for_reading(folder) as checkpoints:
                saved = checkpoints.find(which)
                if _all_exist(listed):
                    return saved, checkpoints.restore_evaluated(saved.step, abstract)
        except UserError:
            if _all_exist(listed):
                raise
    raise UserError(
        f"the run replaced the checkpoints in {folder} {READS} times while one was read: try again "
        "when it saves less often, or stop it"
    )


def _all_exist(paths: list[Path]) -> bool:
    return all(path.exists() for path in paths)
