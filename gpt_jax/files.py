"""Files that are replaced as a whole or not at all, and stay where they belong. No jax."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt_jax.setting import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when all went well; a reader finds the old
    one or the new one, and never a part.

    What is no regular file (a device, a pipe) is written into, not replaced.

    Raises:
      OSError: at once, when it cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError unless so many bytes are free in `folder`."""
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{needed:,} bytes are needed in {folder} and {free:,} are free: make room")


def check_links(folder: Path) -> None:
    """Refuses links that lead out of `folder`: what is written into it could land anywhere.

    Raises:
      UserError: for the first one.
    """
    inside = folder.resolve()
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UserError(
                    f"{path} is a link to {path.resolve()}, out of the folder of the run: put what "
                    "it leads to in its place"
                )
