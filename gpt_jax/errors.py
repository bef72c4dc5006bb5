"""Errors that a user can repair, the root cause of others, and notes. Standard library only."""

import contextlib
import sys


class UserError(ValueError):
    """Something the user gave cannot work. The message is one sentence: value, rule, remedy.

    Scripts print only this sentence, on stderr, and exit with status 2. A notebook prints it
    without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def first_cause(error: BaseException) -> str:
    """The first line of the error at the root of the chain of causes."""
    root = _root(error)
    return (str(root).strip() or repr(root)).splitlines()[0]


def out_of_memory(error: BaseException) -> str:
    """A sentence for an error of Python, NumPy or JAX that memory is short; empty for others."""
    root = _root(error)
    if not isinstance(root, MemoryError) and "RESOURCE_EXHAUSTED" not in str(root):
        return ""
    return (
        f"memory is short ({first_cause(error)}): lower train.batch_size or train.microbatch_size, "
        "draw fewer samples at a time, or choose a smaller model"
    )


def note(text: str) -> None:
    """Prints a note on stderr. If it cannot be written, as on a full disk, the work goes on."""
    with contextlib.suppress(OSError):
        print(f"note: {text}", file=sys.stderr, flush=True)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
