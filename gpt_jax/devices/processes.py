"""What the processes of one run agree on. How they meet is in training/meeting.py.

All processes run the same program over one mesh, so all must take the same branches. A process that
takes another branch waits for the others forever. Whatever only one process sees (a file, a signal)
is therefore shared here. With a single process, each function and decorator does only its own work,
and a reader of the single-process path can ignore them.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

BLOCK = 4096  # Bytes. Messages are padded to whole blocks, so few programs are compiled.


def several() -> bool:
    """Whether the run has several processes. Starts no device."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which writes all files but the other processes' shards."""
    return not several() or jax.process_index() == 0


def on_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: only process 0 runs `function`; every process returns its result.

    With several processes, the result must be JSON. Errors are raised as by `on_all`.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if not several():
            return function(*args, **kwargs)
        result = _together(lambda: function(*args, **kwargs) if is_first() else None)
        return cast(T, _sent(result, 0))

    return wrapper


def on_all(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: every process runs `function`; if it fails in one process, it fails in all.

    `function` must not wait for the other processes.

    Raises:
      UserError: in every process, if `function` raises a UserError or an OSError in one. Class and
        message are those of the first process that failed. A process that raises any other
        exception keeps it.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return _together(lambda: function(*args, **kwargs))

    return wrapper


def _together(action: Callable[[], T]) -> T:
    if not several():
        return action()
    error, result = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if failed.any():
        _fail(error, int(np.argmax(failed)))
    return cast(T, result)


def _fail(error: Exception | None, source: int) -> None:
    """Raises in this process the error of the process `source`."""
    message, name = _sent([str(error), type(error).__name__], source)
    if error is not None and not isinstance(error, UserError | OSError):
        raise error
    kinds = {kind.__name__: kind for kind in UserError.__subclasses__()}
    raise kinds.get(name, UserError)(message) from error


def _sent(value: Any, source: int) -> Any:
    """The JSON value of the process `source`, sent to every process."""
    here = jax.process_index() == source
    text = json.dumps(value).encode() if here else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text)), here))
    block = np.zeros(-(-size // BLOCK) * BLOCK, np.uint8)
    block[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(block, here)[:size].tobytes())


def greatest(number: int) -> int:
    """The greatest of the processes' numbers."""
    if not several():
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def check_same(what: str, value: Any) -> None:
    """Raises UserError, which names `what`, in all processes if their JSON values differ."""
    if not several():
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    if (digests != digests[0]).any():
        raise UserError(
            f"{what} differs between the processes of the run: start all processes with the same "
            "command, except for --process_id, and the same files"
        )


def gathered(tree: Any) -> Any:
    """A tree of arrays, each fetched whole into this process's memory, one after another."""
    return multihost_utils.process_allgather(tree, tiled=True) if several() else tree
