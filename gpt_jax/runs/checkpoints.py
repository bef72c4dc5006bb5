"""Saving and restoring a run's arrays; which checkpoints are kept. The only module with Orbax.

A checkpoint is the folder checkpoints/<step>/. It is committed as a whole or not at all, and holds
a digest of every array. `retained` decides which checkpoints stay and which are deleted, and that
happens only after the newest one is flushed to the disk: a power cut loses neither.

With several processes, each one writes and reads its part of the arrays, so all of them must call
every method here. Only process 0 looks at the folder or changes another file in it.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import jax
from orbax.checkpoint import v1 as ocp

from gpt_jax.devices import processes
from gpt_jax.errors import UserError, first_cause, note, out_of_memory
from gpt_jax.runs import checkpoint_files, damage
from gpt_jax.runs.checkpoint_files import COMMITTED
from gpt_jax.runs.checkpoint_list import Saved, best, checkpoint_folders, choose, no_checkpoint
from gpt_jax.runs.damage import DamagedCheckpoint
from gpt_jax.runs.digest import describe, differences, digests
from gpt_jax.runs.literal_names import take_names_literally
from gpt_jax.runs.silence import silence_orbax

MAX_FAILED_SAVES = 3  # In a row.


def retained(saved: list[Saved]) -> set[int]:
    """Checkpoint retention: the steps of the newest and of the one with the lowest loss.

    One whose loss is not known could be the best, so it stays, too.
    """
    return {saved[-1].step, best(saved).step, *(one.step for one in saved if not one.is_known)}


def _make_readable(folder: Path) -> None:
    """Repairs or sets aside the checkpoints that would keep Orbax from reading all others."""
    checkpoint_files.repair_losses(folder)
    damage.set_aside_undescribed(folder)


class Checkpoints:
    """The checkpoints in the absolute `folder`. Use as a context manager, from one thread."""

    def __init__(self, folder: Path, remedy: str, **options: Any) -> None:
        """Use `for_training` or `for_reading`. `remedy`: what helps if one cannot be restored."""
        self.folder, self._remedy = folder.absolute(), remedy
        self._failed_saves = 0
        self._pending: tuple[int, Any] | None = None  # The step being saved, and its future.
        silence_orbax()
        take_names_literally()
        try:
            self._checkpointer = ocp.training.Checkpointer(self.folder, **options)
        except Exception as error:
            raise self._damaged(self.folder, error) from error

    @classmethod
    def for_training(cls, folder: Path) -> Self:
        """For the run that saves. Creates `folder`, and removes what a killed save left."""
        _make_readable(folder)
        checkpoint_files.remove_incomplete(folder)
        context = ocp.Context()
        # Before Orbax renames a finished save: else a power cut could leave a checkpoint that has
        # its name and lacks its content.
        context.async_options.post_finalization_callback = partial(
            checkpoint_files.flush_saves, folder.absolute()
        )
        return cls(
            folder,
            "an older checkpoint is used, if there is one",
            context=context,
            preservation_policy=ocp.training.preservation_policies.PreserveAll(),
            cleanup_tmp_directories=True,
        )

    @classmethod
    def for_reading(cls, folder: Path) -> Self:
        """For everyone else, also while the run trains. Changes nothing in `folder`.

        Raises:
          UserError: if there is no checkpoint, or one that makes all of them unreadable.
        """
        if not (found := checkpoint_folders(folder.parent)):
            raise no_checkpoint(folder)
        remedy = "it is damaged: choose another step"
        for path in found:
            damage.check_descriptions(
                path, f"it hides the others: rename it to damaged-{path.name}, then try again"
            )
        return cls(folder, remedy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # `wait` has reported the error of a failed save.
                self._checkpointer.close()

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self.folder / str(step)

    @processes.on_first
    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first, also of copies that were never committed."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def reload(self) -> None:
        """Reads the folder again after something changed it. Only for the run that saves."""
        _make_readable(self.folder)
        self._checkpointer.reload()

    def all(self) -> list[Saved]:
        """The committed checkpoints, oldest first. Waits for the save under way."""
        self.wait()
        return self._committed()

    def _committed(self) -> list[Saved]:
        return [Saved(*values) for values in self._committed_values()]

    @processes.on_first
    def _committed_values(self) -> list[tuple[Any, ...]]:
        paths = [self.path(checkpoint.step) for checkpoint in self._checkpointer.checkpoints]
        committed = filter(checkpoint_files.is_committed, paths)
        return [dataclasses.astuple(checkpoint_files.saved(path)) for path in committed]

    @property
    def latest_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        saved = self.all()
        return saved[-1].step if saved else 0

    def find(self, which: str) -> Saved:
        """The checkpoint that `which` names, see `choose`. Raises UserError if there is none."""
        return choose(self.all(), which, self.folder)

    def save(self, step: int, state: Any, val_loss: float | None = None) -> None:
        """Starts to save the arrays of `state`; returns before they are on disk.

        The caller may donate `state` at once. If the save fails, a note is printed.

        Args:
          val_loss: validation loss of `state` in nats per token; None = not measured.

        Raises:
          UserError: if MAX_FAILED_SAVES in a row have failed.
        """
        self.wait()
        with self._tolerating_failure(step):
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            checkpoint_files.check_space(self.folder, size)
            future = self._checkpointer.save_checkpointables_async(
                step,
                {"state": state},
                metrics=checkpoint_files.metrics(step, val_loss),
                custom_metadata={"digests": digests(state)},
                force=True,
            )
            self._pending = step, future

    def wait(self) -> None:
        """Waits until the last save is on disk or has failed. Raises as `save`.

        Then deletes the checkpoints that are no longer needed.
        """
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            with self._tolerating_failure(step):
                if future is not None:
                    future.result()
                checkpoint_files.flush(self.path(step))
                self._failed_saves = 0
            self._delete_others()

    def _delete_others(self) -> None:
        """Deletes all committed checkpoints but the retained ones."""
        saved = self._committed()
        if unneeded := {one.step for one in saved} - (retained(saved) if saved else set()):
            for step in unneeded:
                checkpoint_files.delete(self.path(step))
            self.reload()

    @contextlib.contextmanager
    def _tolerating_failure(self, step: int) -> Iterator[None]:
        """If the save of `step` fails in the block: prints a note, or gives up after several."""
        try:
            yield
        except Exception as error:
            message = f"the checkpoint of step {step} was not saved ({first_cause(error)})"
            if processes.several() and not isinstance(error, UserError):
                # The other processes may have saved their parts and wait for this one. It exits,
                # and then they exit too.
                raise OSError(message) from error
            self._forget_failed_save()
            self._failed_saves += 1
            if self._failed_saves >= MAX_FAILED_SAVES:
                raise UserError(
                    f"{message}, {self._failed_saves} in a row: check {self.folder}; then the "
                    f"same command resumes from step {self.latest_step}"
                ) from error
            note(f"{message}; training continues")

    def _forget_failed_save(self) -> None:
        with contextlib.suppress(Exception):  # Orbax would raise the error again at the next save.
            self._checkpointer.wait()
        self.reload()  # Orbax counts a save as done when it begins.
        checkpoint_files.remove_incomplete(self.folder)

    def confirm(self, step: int) -> None:
        """Waits until `step`, the last saved, is on disk. Raises UserError if its save failed."""
        if step not in [saved.step for saved in self.all()]:
            raise UserError(
                f"step {step} is not in {self.folder} because its save failed: check the folder; "
                f"then the same command resumes from step {self.latest_step}"
            )

    def add_loss(self, step: int, val_loss: float) -> None:
        """Adds the validation loss to a checkpoint that was saved without it."""
        processes.on_first(checkpoint_files.write_loss)(self.path(step), val_loss)

    def restore(self, step: int, abstract: Any) -> Any:
        """The state saved at `step`, laid out as `abstract` says.

        Args:
          abstract: tree of jax.ShapeDtypeStruct with shardings, see `state.abstract_state`. It may
            be a part of what was saved.

        Raises:
          DamagedCheckpoint: if a file is missing or broken, or an array is not what was saved.
          UserError: if the saved arrays have other shapes or dtypes.
        """
        expected = self._expected_digests(step, abstract)
        state = self._load(step, abstract)
        for name, digest in digests(state).items():
            if expected[name] != digest:
                raise self._damaged(self.path(step), ValueError(f"{name}: its digest differs"))
        return state

    def restore_evaluated(self, step: int, abstract: Any) -> Any:
        """The part `TrainState.evaluated` of the state saved at `step`. Raises as `restore`."""
        name = "average" if abstract.average else "params"
        return self.restore(step, {name: getattr(abstract, name)})[name]

    @processes.on_all
    def _expected_digests(self, step: int, abstract: Any) -> dict[str, int]:
        """The digests stored at `step`. Reads no array. Raises as `restore`."""
        path = self.path(step)
        try:
            if not checkpoint_files.is_committed(path):
                raise FileNotFoundError(f"{COMMITTED} is missing: the save was not completed")
            metadata = self._checkpointer.checkpointables_metadata(step)
            saved = describe(metadata.metadata["state"])
            expected = cast(dict[str, int], metadata.custom_metadata["digests"])
            if saved.keys() != expected.keys():
                raise ValueError("its list of arrays is not the one that was saved")
            if (inside := expected.get("step", step)) != step:  # A number is its own digest.
                raise ValueError(f"it was renamed: it holds step {inside}")
            damage.check_size(path, sum(math.prod(shape) for shape, _ in saved.values()))
        except Exception as error:
            raise self._damaged(path, error) from error
        if unlike := differences(saved, describe(abstract)):  # Orbax would cast to another dtype.
            raise UserError(
                f"{path} does not fit the config.json beside it ({'; '.join(unlike[:3])}): restore "
                "the config.json the run began with"
            )
        return expected

    @processes.on_all
    def _load(self, step: int, abstract: Any) -> Any:
        partial = ocp.Context()
        partial.pytree.loading.partial_load = True  # Reads only the arrays in `abstract`.
        try:
            with partial:
                return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        except Exception as error:
            raise self._damaged(self.path(step), error) from error

    def _damaged(self, path: Path, error: Exception) -> UserError:
        if sentence := out_of_memory(error):  # The checkpoint may be intact.
            return UserError(sentence)
        # Orbax wraps every failure; the first cause is what helps the user.
        return DamagedCheckpoint(
            f"{path} cannot be restored ({first_cause(error)}): {self._remedy}"
        )
