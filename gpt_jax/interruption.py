"""SIGTERM and Ctrl-C: the step in hand is finished and saved, then the process ends.

The second signal ends it at once; the last checkpoint stays as it is. Of several processes that
train one run any may get the signal; all end after the same step, as `agree` tells them.
"""

import os
import signal
from collections.abc import Callable, Iterator
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
      signum: the signal that came to this process; 0 until it comes.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        """`agree`: of this process's signal and those of others one, the same in all; or 0."""
        self.signum, self._agree = 0, agree

    def poll(self) -> int:
        """The signal that asks all processes to end, or 0. To be called by all of them at once."""
        return self._agree(self.signum)

    def check(self) -> None:
        """To be called, by all processes at once, where work can be left alone.

        Raises:
          Interrupted: when a signal has come to one of them.
        """
        if signum := self.poll():
            raise Interrupted(signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum


@contextmanager
def interruption(agree: Callable[[int], int] = int) -> Iterator[Interruption]:
    """Takes the signals over while what is inside works. Only in a process's main thread."""
    asked = Interruption(agree)
    before = {signum: signal.signal(signum, asked._receive) for signum in SIGNALS}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
