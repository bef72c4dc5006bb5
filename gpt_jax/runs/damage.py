"""Whether a checkpoint is damaged, or only cannot be read at the moment.

A checkpoint is damaged if it can be read but is not what was written. It is then set aside (its
folder is renamed), never deleted. A disk error or a missing permission is not damage, and changes
nothing.
"""

import os
from pathlib import Path
from typing import Any, NoReturn

from gpt_jax.devices import processes
from gpt_jax.errors import UserError, note
from gpt_jax.files import open_file, read_json

# Orbax reads these files of every checkpoint at once: one that is broken would hide all of them.
METADATA, METRICS = "_CHECKPOINT_METADATA", "metrics/metrics"
# What Orbax 0.12 accepts in the first one. Times are nanoseconds, and become dates.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "item_handlers": (dict, str),
    **dict.fromkeys(("metrics", "performance_metrics", "custom_metadata"), dict),
    **dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), int),
}
# Trained arrays compress far less than this.
MAX_NUMBERS_PER_BYTE = 25


class DamagedCheckpoint(UserError):
    """A checkpoint is incomplete, or is not what was written."""


def _files(folder: Path) -> list[Path]:
    """Every file in a folder and its subfolders. Raises OSError if a folder cannot be listed."""

    def fail(error: OSError) -> NoReturn:
        raise error

    listed = os.walk(folder, onerror=fail)
    return [Path(parent) / name for parent, _, names in listed for name in names]


@processes.on_first
def check_readable(checkpoint: Path) -> None:
    """Reads every file to its end. Raises UserError if one cannot be read, damaged or not."""
    try:
        for path in _files(checkpoint):
            with open_file(path) as file:
                while file.read(2**20):
                    pass
    except OSError as error:
        raise _unreadable(checkpoint, error) from error


def check_descriptions(checkpoint: Path, remedy: str) -> None:
    """Checks the files that are read of every checkpoint before one is chosen; they may be missing.

    Raises:
      DamagedCheckpoint: with `remedy`, if Orbax would not accept one of them.
      UserError: if one of them cannot be read.
    """
    for name, check in ((METADATA, _check_fields), (METRICS, lambda found: None)):
        try:
            check(read_json(checkpoint / name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unreadable(checkpoint, error) from error
        except ValueError as error:
            raise DamagedCheckpoint(
                f"{checkpoint} cannot be restored ({name} is not valid: {error}): {remedy}"
            ) from error


def _check_fields(found: dict[str, Any]) -> None:
    """Raises ValueError for metadata with a field that Orbax does not know or accept."""
    for name, value in found.items():
        if name not in FIELDS:
            raise ValueError(f"{name!r} is not one of its fields")
        is_of_type = value is None or isinstance(value, FIELDS[name])
        if not is_of_type or (isinstance(value, int) and not 0 <= value < 2**63):
            raise ValueError(f"{name} = {value!r:.40} is not valid")
    if found.get("performance_metrics"):  # Orbax 0.12 writes none, and refuses unknown ones.
        raise ValueError("performance_metrics is not empty")


def check_size(checkpoint: Path, numbers: int) -> None:
    """Raises ValueError, before memory is allocated, if the files are too small for the numbers."""
    size = sum(path.stat().st_size for path in _files(checkpoint))
    if numbers > MAX_NUMBERS_PER_BYTE * size:
        raise ValueError(f"its {size:,} bytes claim to hold {numbers:,} numbers")


def _set_aside(checkpoint: Path, error: UserError) -> None:
    """Renames a damaged checkpoint and prints a note.

    If it kept its name, Orbax would skip every save up to its step.
    """
    name = f"damaged-{checkpoint.name}"
    while (checkpoint.parent / name).exists():
        name += "-again"
    checkpoint.rename(checkpoint.parent / name)
    note(f"{error}; set aside as {name}")


set_aside = processes.on_first(_set_aside)


@processes.on_first
def set_aside_undescribed(folder: Path) -> None:
    """Sets aside every checkpoint that would hide all others. Raises as `check_descriptions`."""
    for path in folder.glob("[0-9]*"):
        if path.name.isdecimal():
            try:
                check_descriptions(path, "the others cannot be listed beside it")
            except DamagedCheckpoint as error:
                _set_aside(path, error)


@processes.on_first
def has_set_aside(folder: Path) -> bool:
    """Whether a checkpoint was set aside in `folder`, now or earlier."""
    return any(folder.glob("damaged-*"))


def _unreadable(checkpoint: Path, error: OSError) -> UserError:
    return UserError(
        f"{checkpoint} cannot be read ({error.strerror or error}) but may be intact: check the "
        "disk and its permissions, then try again; nothing was changed"
    )
