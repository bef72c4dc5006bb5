"""SIGTERM and Ctrl-C: the step in hand is finished and saved, then the process ends.

The second signal ends it at once; the last checkpoint stays as it is.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """The run was asked to end, and what was in hand is saved.

    No Exception: nothing that copes with errors may hold it up.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interruption:
    """Whether a signal asked the run to end.

    Attributes:
      signum: the signal; 0 until it comes.
    """

    def __init__(self) -> None:
        self.signum = 0

    def check(self) -> None:
        """To be called where work can be left alone.

        Raises:
          Interrupted: when a signal has come.
        """
        if self.signum:
            raise Interrupted(self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Takes the signals over while what is inside works. Only in a process's main thread."""
    asked = Interruption()
    before = {signum: signal.signal(signum, asked._receive) for signum in SIGNALS}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
