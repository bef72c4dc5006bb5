"""One writer per run: a lock that dies with the process that holds it. Standard library only."""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def one_writer(workdir: Path) -> Iterator[None]:
    """Holds `workdir` for this process alone; makes the folder, and removes it if it stays empty.

    The lock is the system's (flock on .lock), so it is free again when its holder is gone, however
    it went. What the file says is only for people.

    Raises:
      UserError: when another process holds it, or the folder cannot be written.
    """
    if fcntl is None:
        print("note: no file locks here: see that no other run uses this folder", file=sys.stderr)
        yield
        return
    with _lock(workdir) as file:
        file.truncate(0)
        file.write(json.dumps(_this_process()).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())  # Other hosts read it, too.
        try:
            yield
        finally:
            if [path.name for path in workdir.iterdir()] == [".lock"]:
                (workdir / ".lock").unlink()
                workdir.rmdir()


def _lock(workdir: Path) -> BinaryIO:
    """The open file of the lock, which is free again when it is closed."""
    path = workdir / ".lock"
    if path.is_symlink():  # It is written into.
        raise UserError(f"{path} is a link: remove it")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}): check it, or use another folder"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, its last holder may have removed it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except BlockingIOError:
        pass
    file.close()
    raise UserError(
        f"{workdir} is in use by {_holder(path)}: wait for it, stop it, or use another folder"
    )


def _this_process() -> dict[str, str | int]:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": platform.node(), "started": started}


def _holder(path: Path) -> str:
    """Who holds the lock, as the file says."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
    return "another process"
