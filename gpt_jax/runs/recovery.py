"""Restoring the newest intact checkpoint, past damaged ones."""

from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.runs import damage
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.damage import DamagedCheckpoint


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
