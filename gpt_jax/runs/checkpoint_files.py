"""The files of checkpoints that a run reads and writes itself, without Orbax."""

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from gpt_jax.devices import processes
from gpt_jax.files import flush as flush_path
from gpt_jax.files import replacing

# Orbax writes it last, but does not look for it when it reads, if the disk can rename folders.
COMMITTED = "commit_success.txt"
# Free space a save needs, in sizes of its arrays: the old checkpoint goes only when the new one is
# complete, and a run writes other files too.
SPACE_NEEDED = 1.2


def is_committed(checkpoint: Path) -> bool:
    """Whether the save of a checkpoint was completed."""
    return (checkpoint / COMMITTED).exists()


@processes.on_first
def check_space(folder: Path, size: int) -> None:
    """Raises OSError unless `folder` has room for a checkpoint with `size` bytes of arrays."""
    needed, free = int(SPACE_NEEDED * size), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{needed:,} bytes are needed in {folder} and {free:,} are free: make room")


def flush_saves(folder: Path) -> None:
    """Waits until the files of the saves under way in `folder` are on the disk. Raises OSError."""
    for save in folder.glob("*.orbax-checkpoint-tmp"):
        for path in [*save.rglob("*"), save]:
            flush_path(path)


@processes.on_all
def flush(checkpoint: Path) -> None:
    """Waits until all of a checkpoint is on the disk, its name too. Raises OSError."""
    for path in [*checkpoint.rglob("*"), checkpoint, checkpoint.parent]:
        flush_path(path)


@processes.on_first
def delete(checkpoint: Path) -> None:
    """Deletes a checkpoint. If that is interrupted, `remove_incomplete` removes the rest."""
    deleted = checkpoint.with_name(f"{checkpoint.name}.deleted.orbax-checkpoint-tmp")
    with contextlib.suppress(OSError):
        checkpoint.rename(deleted)
        shutil.rmtree(deleted, ignore_errors=True)


@processes.on_first
def remove_incomplete(folder: Path) -> None:
    """Removes what failed saves and interrupted deletions left.

    A write that is still under way may create its folder again.
    """
    for path in folder.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(path, ignore_errors=True)


def sortable_loss(metrics: Any) -> float:
    """The validation loss in a checkpoint's metrics; inf if it is missing or not finite."""
    loss = (metrics or {}).get("val_loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


@processes.on_first
def write_loss(checkpoint: Path, val_loss: float) -> None:
    """Writes the validation loss into the metrics of a checkpoint, if it has any."""
    path = checkpoint / "metrics" / "metrics"
    if path.exists():
        with replacing(path) as file:
            file.write(json.dumps({"val_loss": val_loss}).encode("utf-8"))
