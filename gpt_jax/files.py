"""Files that are replaced as a whole or not at all, and the folder of the cache. No jax."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs


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


def cache_folder() -> Path:
    """The folder for downloads and compiled programs: GPT_JAX_CACHE, or the platform's own."""
    if chosen := os.environ.get("GPT_JAX_CACHE"):
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_cache_path("gpt_jax", appauthor=False)
