"""The files of checkpoints that a run reads and writes itself, without Orbax."""

import contextlib
import hashlib
import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

from gpt_jax.devices import processes
from gpt_jax.errors import UserError
from gpt_jax.files import flush as flush_path
from gpt_jax.files import read_file, read_json, replacing
from gpt_jax.runs.checkpoint_list import Saved, checkpoint_folders

# Orbax writes it last, but does not look for it when it reads, if the disk can rename folders.
COMMITTED = "commit_success.txt"
METRICS = "metrics/metrics"  # Where Orbax stores what `metrics` returns.
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


def metrics(step: int, val_loss: float | None) -> dict[str, Any]:
    """What is stored as a checkpoint's metrics: its validation loss, and a check of that.

    A loss that was not measured is infinite.
    """
    loss = math.inf if val_loss is None else float(val_loss)
    return {"val_loss": loss, "crc32": zlib.crc32(f"{step} {loss!r}".encode())}


def saved(checkpoint: Path) -> Saved:
    """A checkpoint with the loss that is stored with it or, if that is damaged, in the log."""
    loss = _stored_loss(checkpoint)
    loss = _logged_loss(checkpoint) if loss is None else loss
    sortable = loss if loss is not None and math.isfinite(loss) else math.inf
    return Saved(int(checkpoint.name), sortable, is_known=loss is not None)


def committed(workdir: Path) -> list[Saved]:
    """The committed checkpoints of a run, oldest first. Reads them without Orbax and JAX."""
    found = [saved(path) for path in checkpoint_folders(workdir) if is_committed(path)]
    return sorted(found, key=lambda one: one.step)


def digest(checkpoint: Path) -> str:
    """The SHA-256 of the digests of all arrays of a checkpoint.

    Raises UserError if they cannot be read.
    """
    try:
        digests = read_json(checkpoint / "_CHECKPOINT_METADATA")["custom_metadata"]["digests"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{checkpoint} cannot be read ({error}): choose another checkpoint"
        ) from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode("utf-8")).hexdigest()


def _stored_loss(checkpoint: Path) -> float | None:
    """The loss that is stored with a checkpoint; None if it is not what was written."""
    try:
        found = read_json(checkpoint / METRICS)
    except (OSError, ValueError):
        return None
    loss = found.get("val_loss")
    if not isinstance(loss, float):
        return None
    check = metrics(int(checkpoint.name), loss)["crc32"]
    return loss if found.get("crc32", check) == check else None  # Older versions wrote no check.


def _logged_loss(checkpoint: Path) -> float | None:
    """The loss of a checkpoint's step in the log of its run; None if there is none."""
    try:
        lines = read_file(checkpoint.parent.parent / "metrics.jsonl").split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            entry = json.loads(line)
            loss = entry.get("val/loss")
            if entry.get("step") == int(checkpoint.name) and isinstance(loss, float):
                return loss
    return None


@processes.on_first
def repair_losses(folder: Path) -> None:
    """Replaces damaged losses by those in the log: one could hide all checkpoints from Orbax."""
    for path in checkpoint_folders(folder.parent):
        if _stored_loss(path) is None and (loss := _logged_loss(path)) is not None:
            write_loss(path, loss)


def write_loss(checkpoint: Path, val_loss: float) -> None:
    """Writes the validation loss into the metrics of a checkpoint, if it has any."""
    path = checkpoint / METRICS
    if path.exists():
        with replacing(path) as file:
            file.write(json.dumps(metrics(int(checkpoint.name), val_loss)).encode("utf-8"))
