"""Atomic replacement of files, and the cache folder. No jax."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, which replaces `path` if the block succeeds.

    A reader finds the old file or the new one, never a part. A link stays; the file that it names
    is replaced. A device or a pipe cannot be replaced: it is written to directly.

    Raises:
      OSError: immediately, if the file cannot be written.
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
        flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk.

    A rename alone can reach the disk before the content of what it renames: after a power cut there
    would be an empty file. Windows cannot flush a folder, so nothing happens there.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """The folder for downloads and compiled programs: GPT_JAX_CACHE, or the platform's default."""
    if chosen := os.environ.get("GPT_JAX_CACHE"):
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_cache_path("gpt_jax", appauthor=False)
