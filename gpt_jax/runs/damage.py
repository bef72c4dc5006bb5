"""Whether a checkpoint is damaged, or something is only in the way of reading it.

Damaged is what can be read and is not what was written: it is set aside, never removed. A disk
that gives an error, or missing permissions, change nothing.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from gpt_jax.errors import UserError

# Orbax reads these of every checkpoint at once: one that is broken would hide all of them.
DESCRIPTIONS = ("_CHECKPOINT_METADATA", "metrics/metrics")
# Far more than arrays that were trained can be compressed.
MOST_NUMBERS_PER_BYTE = 25


class DamagedCheckpoint(UserError):
    """A checkpoint cannot be read, or is not what was written."""


def files_of(folder: Path) -> list[Path]:
    """Every file in a folder and those below. Raises OSError where one cannot be looked into."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    found = os.walk(folder, onerror=refuse)
    return [Path(parent) / name for parent, _, names in found for name in names]


def check_readable(checkpoint: Path) -> None:
    """Reads every file to its end.

    Raises:
      UserError: where that is not possible: nobody knows then whether it is damaged.
    """
    try:
        for path in files_of(checkpoint):
            with open(path, "rb") as file:
                while file.read(2**20):
                    pass
    except OSError as error:
        raise _in_the_way(checkpoint, error) from error


def check_descriptions(checkpoint: Path, remedy: str) -> None:
    """Looks at what is read of every checkpoint before one is chosen; it may be missing.

    Raises:
      DamagedCheckpoint: where it is not what it should be.
      UserError: where it cannot be read.
    """
    for name in DESCRIPTIONS:
        try:
            whole = isinstance(json.loads((checkpoint / name).read_bytes()), dict)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _in_the_way(checkpoint, error) from error
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            raise DamagedCheckpoint(
                f"{checkpoint} cannot be restored ({name} is no JSON object): {remedy}"
            )


def check_size(checkpoint: Path, numbers: int) -> None:
    """Before memory is taken for `numbers` numbers: a small file can claim to hold very many.

    Raises:
      ValueError: when its files are too small for them.
    """
    size = sum(path.stat().st_size for path in files_of(checkpoint))
    if numbers > MOST_NUMBERS_PER_BYTE * size:
        raise ValueError(f"its {size:,} bytes claim to hold {numbers:,} numbers")


def set_aside(checkpoint: Path, error: UserError) -> None:
    """Renames a damaged checkpoint and says so; Orbax would skip saves up to its step."""
    name = f"damaged-{checkpoint.name}"
    while (checkpoint.parent / name).exists():
        name += "-again"
    checkpoint.rename(checkpoint.parent / name)
    print(f"note: {error}; set aside as {name}", file=sys.stderr)


def remove_torn(folder: Path) -> None:
    """Removes all that failed saves left: a write that goes on can have made its folder anew."""
    for left in folder.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(left, ignore_errors=True)


def set_aside_undescribed(folder: Path) -> None:
    """Sets aside the checkpoints that would hide all others. Raises UserError as the check does."""
    for path in folder.glob("[0-9]*"):
        if path.name.isdecimal():
            try:
                check_descriptions(path, "the others cannot be listed beside it")
            except DamagedCheckpoint as error:
                set_aside(path, error)


def _in_the_way(checkpoint: Path, error: OSError) -> UserError:
    return UserError(
        f"{checkpoint} cannot be read ({error.strerror or error}), which need not be damage: see "
        "to the disk and its permissions, then try again; nothing was changed"
    )
