"""Why a run ends, and how it is asked to: SIGTERM and Ctrl-C.

On the first signal the run finishes and saves the current step, then ends. A second signal ends the
process at once; the last checkpoint stays as it is. If several processes train a run, any of them
may get the signal, and all end after the same step.
"""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why training ended.

    Attributes:
      reason: for people, such as "SIGTERM".
      status: the exit status of the process: 0, or 128 plus the number of the signal.
      is_resumable: whether steps are left, so that the same command continues.
    """

    reason: str
    status: int = 0
    is_resumable: bool = True


FINISHED = Stop("finished", is_resumable=False)
ALREADY_FINISHED = Stop("already finished", is_resumable=False)


class Stopped(BaseException):
    """Raised to leave work that the resumed run does again.

    It is no Exception, so that no handler of errors catches it.
    """

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


class Stopper:
    """Knows whether the run was asked to stop.

    Attributes:
      signum: the signal this process got; 0 if none.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        """`agree`: from this process's signal to the one that all processes act on (0 = none)."""
        self.signum, self._agree = 0, agree

    def poll(self) -> Stop | None:
        """The reason to stop, if there is one. All processes must call it at the same point."""
        signum = self._agree(self.signum)
        return Stop(signal.Signals(signum).name, 128 + signum) if signum else None

    def check(self) -> None:
        """Leaves the current work if the run was asked to stop. All processes must call it.

        Raises:
          Stopped: with the reason.
        """
        if stop := self.poll():
            raise Stopped(stop)

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """Handles a signal: notes the first one, ends the process at the second."""
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum


@contextmanager
def stopping_on_signals(agree: Callable[[int], int] = int) -> Iterator[Stopper]:
    """Handles SIGTERM and SIGINT inside the block. For the main thread only."""
    stopper = Stopper(agree)
    before = {signum: signal.signal(signum, stopper.receive) for signum in SIGNALS}
    try:
        yield stopper
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
