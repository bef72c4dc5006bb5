"""Saving and restoring a run's arrays: the only module that knows Orbax.

A checkpoint is checkpoints/<step>/, committed as a whole or not at all, with a digest of every
array. The newest and the best by held-out loss are kept. A damaged one is set aside, never removed.

Of several processes each writes and reads its own part of the arrays: all call everything here, and
what a disk says is what process 0 sees (see distributed.py).
"""

import contextlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

import jax
from orbax.checkpoint import v1 as ocp

from gpt_jax.devices import processes
from gpt_jax.errors import UserError, first_cause
from gpt_jax.files import replacing
from gpt_jax.runs import damage
from gpt_jax.runs.checkpoint_list import Saved, checkpoint_folders, chosen, no_checkpoint
from gpt_jax.runs.damage import DamagedCheckpoint
from gpt_jax.runs.digest import described, differences, digests

_policies = ocp.training.preservation_policies

# Written last by Orbax; but where folders can be renamed it does not ask for it when it reads.
COMMITTED = "commit_success.txt"
# Times its arrays: an old checkpoint goes when the new one is complete, and a run has other files.
SPACE_NEEDED = 1.2
MOST_FAILED_SAVES = 3


class Checkpoints:
    """The checkpoints of a run. Use as a context manager; not for several threads."""

    def __init__(self, folder: Path, remedy: str, **options: Any) -> None:
        """See `for_training` and `for_reading`. `remedy`: of a checkpoint that cannot be read."""
        self._folder, self._remedy = folder.absolute(), remedy
        self._failed_saves = 0
        self._pending: tuple[int, Any] | None = None  # A step that is being saved, and its result.
        logging.getLogger("absl").addFilter(_not_orbax)
        try:
            self._checkpointer = ocp.training.Checkpointer(self._folder, **options)
        except Exception as error:
            raise self._cannot_be_read(self._folder, error) from error

    @classmethod
    def for_training(cls, folder: Path) -> Self:
        """Of the one process that saves; makes `folder`, and clears what a killed save left."""
        # reverse: the smallest loss. A NaN would spoil the order and drop the true best.
        best = _policies.BestN(get_metric_fn=_sortable_loss, reverse=True, n=1)
        newest_and_best = _policies.AnyPreservationPolicy([_policies.LatestN(1), best])
        _set_aside_undescribed(folder)
        return cls(
            folder,
            "the run goes on from an older one, if there is one",
            preservation_policy=newest_and_best,
            cleanup_tmp_directories=True,
        )

    @classmethod
    def for_reading(cls, folder: Path) -> Self:
        """Of any other process, while the run goes on or not; changes nothing in `folder`.

        Raises UserError when there is no checkpoint, or one that makes all of them unreadable.
        """
        if not (found := checkpoint_folders(folder.parent)):
            raise no_checkpoint(folder)
        remedy = "it is damaged, or was just replaced: try again, or choose another step"
        for path in found:
            damage.check_descriptions(path, remedy)
        return cls(folder, remedy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # What a save had to say, `wait` has said.
                self._checkpointer.close()

    def all(self) -> list[Saved]:
        """The checkpoints at hand, oldest first."""
        self.wait()
        return [Saved(step, loss) for step, loss in self._committed()]

    @processes.on_first
    def _committed(self) -> list[tuple[int, float]]:
        """Step and sortable loss of every checkpoint, oldest first."""
        return [
            (c.step, _sortable_loss(c.metrics))
            for c in self._checkpointer.checkpoints
            if (self._folder / str(c.step) / COMMITTED).exists()
        ]

    @property
    def latest_step(self) -> int:
        """The newest checkpoint's step; 0 where there is none."""
        saved = self.all()
        return saved[-1].step if saved else 0

    def save(self, step: int, state: Any, val_loss: float | None = None) -> None:
        """Saves the arrays of `state`, with their held-out loss if known, while training goes on.

        `state` may be donated right after. A save that fails is told on stderr.

        Raises:
          UserError: when several in a row have failed.
        """
        self.wait()
        # A checkpoint without metrics would never be removed, so a loss not measured is infinite.
        metrics = {"val_loss": math.inf if val_loss is None else val_loss}
        with self._failures(step):
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            _check_space(self._folder, int(SPACE_NEEDED * size))
            response = self._checkpointer.save_checkpointables_async(
                step,
                {"state": state},
                metrics=metrics,
                custom_metadata={"digests": digests(state)},
                force=True,
            )
            self._pending = step, response

    def add_loss(self, step: int, val_loss: float) -> None:
        """Writes the held-out loss of the checkpoint of `step`, which was saved without it."""
        _write_loss(self._folder / str(step) / "metrics" / "metrics", val_loss)
        self._checkpointer.reload()

    def wait(self) -> None:
        """Returns when what was saved last is on disk.

        Raises:
          UserError: as `save`.
        """
        if self._pending is not None:
            (step, response), self._pending = self._pending, None
            with self._failures(step):
                if response is not None:
                    response.result()
                self._failed_saves = 0

    def confirm(self, step: int) -> None:
        """Returns when `step` is on disk: for the last save of a process.

        Raises:
          UserError: when it is not, and could not be.
        """
        if step not in [saved.step for saved in self.all()]:
            raise UserError(
                f"step {step} is not in {self._folder}, its save failed: see to the folder, then "
                f"the same command goes on from step {self.latest_step}"
            )

    @contextlib.contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        """Tells of a save that has failed, and gives up after several in a row."""
        try:
            yield
        except Exception as error:
            self._failed_saves += 1
            told = f"the checkpoint of step {step} was not saved ({first_cause(error)})"
            if processes.several() and not isinstance(error, UserError):
                # The others may have saved their part, and wait for this one: it ends, so do they.
                raise OSError(told) from error
            with contextlib.suppress(Exception):  # Orbax would say it again at the next save.
                self._checkpointer.wait()
            self._checkpointer.reload()  # Orbax counts what it meant to save as saved.
            _remove_torn(self._folder)
            if self._failed_saves >= MOST_FAILED_SAVES:
                raise UserError(
                    f"{told}, {self._failed_saves} in a row: see to {self._folder}, then the "
                    f"same command goes on from step {self.latest_step}"
                ) from error
            print(f"note: {told}; training goes on", file=sys.stderr)

    def find(self, which: str) -> Saved:
        """The checkpoint that `which` names: "latest", "best" or the number of a step.

        Raises:
          UserError: when there is none such.
        """
        return chosen(self.all(), which, self._folder)

    def restore(self, step: int, abstract: Any) -> Any:
        """The state saved at `step`, laid out as `abstract` says.

        Args:
          abstract: tree of jax.ShapeDtypeStruct with shardings, such as
            `train_step.abstract_state` makes.

        Raises:
          DamagedCheckpoint: when a file is missing or unreadable, or an array is not what was
            saved.
          UserError: when the arrays are of other shapes or dtypes.
        """
        expected = self._expected_digests(step, abstract)
        state = self._load(step, abstract)
        for name, digest in digests(state).items():
            if expected[name] != digest:
                cause = ValueError(f"{name}: its digest differs")
                raise self._cannot_be_read(self._folder / str(step), cause)
        return state

    @processes.on_all
    def _expected_digests(self, step: int, abstract: Any) -> dict[str, int]:
        """What the arrays saved at `step` should have; reads no array. Raises as `restore`."""
        path = self._folder / str(step)
        try:
            if not (path / COMMITTED).exists():
                raise FileNotFoundError(f"{COMMITTED} is missing: it was not written to its end")
            metadata = self._checkpointer.checkpointables_metadata(step)
            saved = described(metadata.metadata["state"])
            expected = cast(dict[str, int], metadata.custom_metadata["digests"])
            if saved.keys() != expected.keys():
                raise ValueError("its list of arrays is not the one that was saved")
            damage.check_size(path, sum(math.prod(shape) for shape, _ in saved.values()))
        except Exception as error:
            raise self._cannot_be_read(path, error) from error
        # Orbax itself would cast to another dtype.
        if unlike := differences(saved, described(abstract)):
            raise UserError(
                f"{path} does not fit the config.json beside it ({'; '.join(unlike[:3])}): restore "
                "the config.json the run began with"
            )
        return expected

    @processes.on_all
    def _load(self, step: int, abstract: Any) -> Any:
        partial = ocp.Context()
        partial.pytree.loading.partial_load = True  # What is not asked for is left unread.
        try:
            with partial:
                return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        except Exception as error:  # Orbax wraps every failure; what helps is its first cause.
            raise self._cannot_be_read(self._folder / str(step), error) from error

    def restore_newest(self, abstract: Any) -> Any | None:
        """The newest state that is whole; None where nothing was ever saved.

        Damaged checkpoints that are newer are told of on stderr and renamed.

        Raises:
          UserError: when there are only damaged ones, for other shapes or dtypes, or when
            something is in the way of reading.
        """
        for step in reversed(self._steps()):
            try:
                return self._restore_now(step, abstract)
            except DamagedCheckpoint as error:
                self._set_aside(step, error)
        if self._has_damaged():  # Set aside now or before.
            raise UserError(
                f"{self._folder} holds damaged checkpoints only, which were set aside: bring a "
                "good one back, or start a new run with another --workdir"
            )
        return None

    @processes.on_first
    def _steps(self) -> list[int]:
        """The steps of all checkpoints, committed or not, oldest first."""
        return [c.step for c in self._checkpointer.checkpoints]

    @processes.on_first
    def _has_damaged(self) -> bool:
        return any(self._folder.glob("damaged-*"))

    def _restore_now(self, step: int, abstract: Any) -> Any:
        """As `restore`, twice: what was in the way of the first time is no damage."""
        try:
            return self.restore(step, abstract)
        except DamagedCheckpoint:
            _check_readable(self._folder / str(step))
            return self.restore(step, abstract)

    def _set_aside(self, step: int, error: UserError) -> None:
        _set_aside(self._folder / str(step), error)
        self._checkpointer.reload()

    def restore_evaluated(self, step: int, abstract: Any) -> Any:
        """Of the state saved at `step` what `TrainState.evaluated` is. Raises as `restore`."""
        name = "average" if abstract.average else "params"
        return self.restore(step, {name: getattr(abstract, name)})[name]

    def _cannot_be_read(self, path: Path, error: Exception) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"{path} cannot be restored ({first_cause(error)}): {self._remedy}"
        )


def _sortable_loss(metrics: Any) -> float:
    loss = (metrics or {}).get("val_loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname  # It fills pages where we say a sentence.


@processes.on_first
def _check_space(folder: Path, needed: int) -> None:
    """Raises OSError unless so many bytes are free in `folder`."""
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{needed:,} bytes are needed in {folder} and {free:,} are free: make room")


@processes.on_first
def _write_loss(path: Path, val_loss: float) -> None:
    if path.exists():
        with replacing(path) as file:
            file.write(json.dumps({"val_loss": val_loss}).encode("utf-8"))


# What looks at the folder or changes it is done by process 0 alone.
_check_readable = processes.on_first(damage.check_readable)
_remove_torn = processes.on_first(damage.remove_torn)
_set_aside = processes.on_first(damage.set_aside)
_set_aside_undescribed = processes.on_first(damage.set_aside_undescribed)
