"""Ctrl-C and SIGTERM end a script with one line: from here on, while it still imports the rest.

command_line.py imports this module first. Later, `command_line.run` lets a script clean up, and a
run that trains saves (gpt_jax/training/stopping.py).
"""

import contextlib
import os
import re
import signal
import sys
from types import FrameType
from typing import NoReturn

SHOW_CURSOR = b"\x1b[?25h"  # A bar hides it.
LIBRARIES = re.compile(r"[/\\](jax|jaxlib|flax|optax|orbax)[/\\]|^<frozen importlib")


class Interrupted(KeyboardInterrupt):
    """Raised at a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


def leave(signum: int, frame: FrameType | None = None) -> NoReturn:
    """Handles a signal: ends the process at once, with one line."""
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)
        os.write(2, b"\ninterrupted\n")
    os._exit(128 + signum)


def is_in_a_library(frame: FrameType | None) -> bool:
    """Whether a module is being imported, or JAX is at work: it would swallow an exception.

    JAX has callbacks in which Python only prints an exception, and C++ code that changes it.
    """
    while frame is not None:
        if LIBRARIES.search(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


if os.path.dirname(os.path.abspath(sys.argv[0])) == os.path.dirname(os.path.abspath(__file__)):
    for _signal in (signal.SIGINT, signal.SIGTERM):  # Not in a program that imports a script.
        signal.signal(_signal, leave)
