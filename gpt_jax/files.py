"""Files: named by a user, opened for reading, replaced whole; and the cache folder. No jax.

Every file that the project reads is opened here, so a pipe or a device in its place is refused and
never waited for.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from gpt_jax.errors import UserError

SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expanded(path: str | Path) -> Path:
    """The path that a user means, who may begin it with `~`, their home.

    Raises:
      UserError: if there is no such home, or no file can have this name.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise UserError(
            f"{path} begins with a home folder that is not known here: give the path without ~ (a "
            f"folder whose own name begins with ~ is ./{path})"
        )
    if "\0" in found:
        raise UserError(f"{str(path)!r} is not a path: remove the character of code 0")
    return Path(found)


def absolute(path: str | Path) -> Path:
    """As `expanded`, and made absolute."""
    return Path(os.path.abspath(expanded(path)))


def special_kind(path: Path) -> str:
    """What is at `path`, such as "a pipe"; empty if it is a file, a folder or nothing."""
    try:
        return SPECIAL.get(stat.S_IFMT(path.stat().st_mode), "")
    except (OSError, ValueError):
        return ""


def open_file(path: Path) -> BufferedReader:
    """Opens a file for reading. Raises OSError at once, and for a pipe, socket or device, too."""
    if kind := special_kind(path):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    return path.open("rb")


def read_file(path: Path) -> bytes:
    """The content of a file. Raises OSError as `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      OSError: as `open_file`.
      ValueError: if the file holds something else.
    """
    try:
        text = read_file(path).decode("utf-8")
        content = json.loads(text, object_pairs_hook=_with_unique_keys)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # Readers differ in which value they take.
        raise ValueError("a key stands twice in an object of its JSON")
    return content


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, which replaces `path` if the block succeeds.

    A reader finds the old file or the new one, never a part. A link stays; the file that it names
    is replaced. A device or a pipe cannot be replaced: it is written to directly.

    Raises:
      OSError: immediately, if the file cannot be written, or is a pipe that nobody reads.
    """
    if special_kind(path):
        with open(path, "wb", opener=_open_at_once) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    _unfinished.add(temporary)
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
        _unfinished.discard(temporary)


_unfinished: set[Path] = set()  # The temporary files of `replacing`.


def remove_unfinished() -> None:
    """Removes the files that `replacing` has not finished, before this process exits at once."""
    for temporary in list(_unfinished):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _open_at_once(path: str, flags: int) -> int:
    """Opens for writing; does not wait until somebody reads a pipe."""
    if not hasattr(os, "O_NONBLOCK"):  # Windows.
        return os.open(path, flags)
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


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
    """The folder for downloads and compiled programs: GPT_JAX_CACHE, or the platform's default.

    Raises:
      OSError: if the user has no home folder that could hold the default.
      UserError: if GPT_JAX_CACHE names the home of a user who does not exist.
    """
    if chosen := os.environ.get("GPT_JAX_CACHE"):
        return absolute(chosen)
    try:
        default = platformdirs.user_cache_path("gpt_jax", appauthor=False)
        return absolute(default)
    except (RuntimeError, UserError):  # Which one depends on the version of platformdirs.
        raise OSError(errno.ENOENT, "there is no home folder: set GPT_JAX_CACHE") from None
