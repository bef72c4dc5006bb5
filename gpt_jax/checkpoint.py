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

import jax
from orbax.checkpoint import v1 as ocp

from gpt_jax.config import UserError
from gpt_jax.run_folder import checkpoint_folders

_policies = ocp.training.preservation_policies


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint: its step, and its held-out loss in nats per token (inf: not measured)."""

    step: int
    val_loss: float


class Checkpoints:
    """The checkpoints of a run. Use as a context manager; not for several threads."""

    def __init__(self, folder: Path, remedy: str, **options: Any) -> None:
        """See `for_training` and `for_reading`. `remedy`: of a checkpoint that cannot be read."""
        self._folder, self._remedy = folder.absolute(), remedy
        try:
            self._checkpointer = ocp.training.Checkpointer(self._folder, **options)
        except Exception as error:
            raise self._cannot_be_read(self._folder, error) from error

    @classmethod
    def for_training(cls, folder: Path) -> Self:
        """Of the one process that saves; makes `folder`, and clears what a killed save left."""
        newest_and_best = _policies.AnyPreservationPolicy(
            [
                _policies.LatestN(1),
                # reverse: the smallest loss. A NaN would spoil the order and drop the true best.
                _policies.BestN(get_metric_fn=_sortable_loss, reverse=True, n=1),
            ]
        )
        return cls(
            folder,
            "move it away to go on from an older one, or use another --workdir",
            preservation_policy=newest_and_best,
            cleanup_tmp_directories=True,
        )

    @classmethod
    def for_reading(cls, folder: Path) -> Self:
        """Of any other process, while the run goes on or not; changes nothing in `folder`.

        Raises:
          UserError: when there is no checkpoint.
        """
        if not checkpoint_folders(folder.parent):
            raise _no_checkpoint(folder)
        return cls(folder, "it is damaged, or was just replaced: try again, or choose another step")

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
            raise _no_checkpoint(self._folder)
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
            raise self._cannot_be_read(self._folder / str(step), error) from error

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The parameters alone of the state saved at `step`, laid out as `abstract` says.

        Raises:
          UserError: when the checkpoint is damaged, or has not exactly the parameters of
            `abstract`. (Orbax itself would leave out what is not asked for.)
        """
        try:
            metadata = self._checkpointer.checkpointables_metadata(step).metadata
            saved = _shapes(metadata["state"]["params"])
        except Exception as error:
            raise self._cannot_be_read(self._folder / str(step), error) from error
        self._check_shapes(step, saved, _shapes(abstract))
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return self.restore(step, {"params": abstract})["params"]

    def _check_shapes(self, step: int, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
        differences = [
            f"{name} is {saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if differences:
            raise UserError(
                f"{self._folder / str(step)} does not fit the config.json beside it "
                f"({'; '.join(differences[:3])}): restore the config.json the run began with"
            )

    def _cannot_be_read(self, path: Path, error: Exception) -> UserError:
        return UserError(f"{path} cannot be restored ({_first_cause(error)}): {self._remedy}")


def _no_checkpoint(folder: Path) -> UserError:
    return UserError(f"{folder} holds no checkpoint: train first (scripts/train.py)")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def _sortable_loss(metrics: Any) -> float:
    loss = (metrics or {}).get("val_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[0]
