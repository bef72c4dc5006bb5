"""One writer per run: a file lock that ends with its holder. Standard library only."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt_jax.errors import UserError, note
from gpt_jax.files import read_json, special_kind

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def one_writer(workdir: Path) -> Iterator[None]:
    """Locks `workdir` for this process; creates the folder, and removes it if it stays empty.

    The operating system holds the lock (flock on .lock) and frees it when the process ends, for
    whatever reason. The text in the file only tells people who holds it.

    Raises:
      UserError: if another process holds the lock, or the folder cannot be written.
    """
    if fcntl is None:
        note("this platform has no file locks: make sure that no other run uses this folder")
        yield
        return
    with _lock(workdir) as file:
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"pid": os.getpid(), "host": platform.node(), "started": started}
        file.write(json.dumps(holder).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())  # Other hosts read it too.
        try:
            yield
        finally:
            if [path.name for path in workdir.iterdir()] == [".lock"]:
                (workdir / ".lock").unlink()
                workdir.rmdir()


def _lock(workdir: Path) -> BinaryIO:
    """The open lock file, locked; closing it frees the lock."""
    path = workdir / ".lock"
    if path.is_symlink():  # Writing would follow it.
        raise UserError(f"{path} is a link: remove it")
    if kind := special_kind(path):
        raise UserError(f"{path} is {kind}, not a file: remove it")
    for place in (workdir, *workdir.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is not a folder: use another folder")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}): check it, or use another folder"
        ) from error
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder may have removed the file after we opened it and before we locked it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    file.close()
    raise UserError(
        f"{workdir} is in use by {_holder(path)}: wait for it, stop it, or use another folder"
    )


def _holder(path: Path) -> str:
    """Who holds the lock, from the text in the file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        holder = read_json(path)
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
    return "another process"
