"""Keeps off stderr what Orbax and its libraries print about their work: we print one line.

If one array cannot be read or written, asyncio and uvloop print 10 to 300 lines about the other
arrays' tasks, which nobody waits for any more (Orbax 0.12.8). What other programs log stays.
"""

import functools
import logging
import re
import sys
import traceback
import warnings
from typing import Any

# Errors after the first failure has stopped all tasks, or of a loop that could open no file.
LATE = ("Event loop is closed", "EventLoop' object has no attribute '_ssock'")
# Orbax's coroutines.
OWN = "Checkpoint|run_sync|_Async|_serialize_|_read_array_|_write_array_"
NEVER_AWAITED = f"coroutine '.*({OWN}).*' was never awaited"


@functools.cache
def silence_orbax() -> None:
    """Drops these messages from now on, in the whole process."""
    logging.getLogger("absl").addFilter(_is_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_about_orbax)
    warnings.filterwarnings("ignore", NEVER_AWAITED, RuntimeWarning)
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if not _is_late(unraisable.exc_value) and not _is_of_orbax(unraisable.object):
            show(unraisable)

    sys.unraisablehook = show_others


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _is_not_about_orbax(record: logging.LogRecord) -> bool:
    """False for a failed task of Orbax or of TensorStore, which does its input and output."""
    trace = traceback.format_exception(*record.exc_info) if record.exc_info else []
    return not re.search("orbax|tensorstore", "".join([record.getMessage(), *trace]))


def _is_late(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError | AttributeError) and str(error).endswith(LATE)


def _is_of_orbax(what: Any) -> bool:
    """Whether it is a coroutine of Orbax, which fails when it is closed before its end."""
    code = getattr(what, "cr_code", None)
    return code is not None and "orbax" in code.co_filename
