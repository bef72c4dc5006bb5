"""Saving and restoring a run's arrays: the only module that knows Orbax.

A checkpoint is checkpoints/<step>/, committed as a whole or not at all. The newest and the best by
held-out loss are kept.
"""

import contextlib
import dataclasses
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orbax.checkpoint import v1 as ocp

from gpt_jax.config import UserError

_policies = ocp.training.preservation_policies


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint: its step, and its held-out loss in nats per token (inf: not measured)."""

    step: int
    val_loss: float


class Checkpoints:
    """The checkpoints of a run. Use as a context manager; not for several threads."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where the checkpoints lie or will lie; made if it does not exist."""
        newest_and_best = _policies.AnyPreservationPolicy(
            [
                _policies.LatestN(1),
                # reverse: the smallest loss. A NaN would spoil the order and drop the true best.
                _policies.BestN(get_metric_fn=_sortable_loss, reverse=True, n=1),
            ]
        )
        self._folder = folder.absolute()  # Orbax refuses relative paths, but only when it saves.
        self._checkpointer = ocp.training.Checkpointer(
            self._folder, preservation_policy=newest_and_best, cleanup_tmp_directories=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._checkpointer.close()

    def all(self) -> list[Saved]:
        """The checkpoints at hand, oldest first."""
        return [Saved(c.step, _sortable_loss(c.metrics)) for c in self._checkpointer.checkpoints]

    @property
    def latest_step(self) -> int:
        """The newest checkpoint's step; 0 where there is none."""
        newest = self._checkpointer.latest
        return newest.step if newest else 0

    def save(self, step: int, state: Any, val_loss: float | None = None) -> None:
        """Saves the arrays of `state`, with their held-out loss if known; returns when on disk."""
        # A checkpoint without metrics would never be removed, so a loss not measured is infinite.
        metrics = {"val_loss": math.inf if val_loss is None else val_loss}
        self._checkpointer.save_checkpointables(step, {"state": state}, metrics=metrics, force=True)

    def find(self, which: str) -> Saved:
        """The checkpoint that `which` names: "latest", "best" or the number of a step.

        Raises:
          UserError: when there is none such.
        """
        saved = self.all()
        if not saved:
            raise UserError(f"{self._folder} holds no checkpoint: train first (scripts/train.py)")
        if which == "latest":
            return saved[-1]
        if which == "best":
            return min(saved, key=lambda one: (one.val_loss, -one.step))
        with contextlib.suppress(StopIteration):
            return next(one for one in saved if str(one.step) == which)
        steps = ", ".join(str(one.step) for one in saved)
        raise UserError(
            f"{self._folder} has no step {which!r}: choose best, latest or one of {steps}"
        )

    def restore(self, step: int, abstract: Any) -> Any:
        """The state saved at `step`, laid out as `abstract` says.

        Args:
          abstract: tree of jax.ShapeDtypeStruct with shardings, such as
            `train_step.abstract_state` makes.

        Raises:
          UserError: when the checkpoint is damaged or of other shapes.
        """
        try:
            return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        except Exception as error:  # Orbax wraps every failure; what helps is its first cause.
            raise UserError(
                f"{self._folder / str(step)} cannot be restored ({_first_cause(error)}): "
                "remove it to go on from an older one, or use another --workdir"
            ) from error


def _sortable_loss(metrics: Any) -> float:
    loss = (metrics or {}).get("val_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[0]
