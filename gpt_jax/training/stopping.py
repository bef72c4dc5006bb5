"""Why a run ends: SIGTERM, Ctrl-C, SIGHUP (a terminal that closes), or `train.max_minutes`.

scripts/train.py handles the signals with `stopping_on_signals`, and passes the `Stopper` to
`loop.train`:

1. The first signal only sets `Stopper.signum`. The current step continues.
2. After each step the loop asks `Stopper.poll`. If there is a signal, it saves a checkpoint, waits
   until that is on disk and raises `Stopped`. (On an accelerator several processes ask only after
   steps that log or save.)
3. Evaluations and the last sample ask while they work, with `Stopper.check`, and are abandoned. The
   resumed run does them first.
4. `loop.train` catches `Stopped` and returns its `Stop`. The script prints after which step the run
   stopped and that the same command resumes it, and exits with `Stop.status`: 143 for SIGTERM, 130
   for Ctrl-C, 129 for SIGHUP.
5. A second signal ends the process at once. The newest checkpoint stays intact.

When the time of `Stopper.limit` is up, `poll` says so, as for a signal, and the status is 0.
`check` says nothing of the time: an evaluation that takes longer than the limit would be abandoned
by every command that resumes the run.

With several processes, any of them may get the signal, and their clocks differ. They agree in
`poll` (`processes.greatest`), so all of them stop after the same step.
"""

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SHOW_CURSOR = b"\x1b[?25h"  # The bar hides it.
# Windows has no SIGHUP.
SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, n)]


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why training ended."""

    reason: str  # For people, such as "SIGTERM".
    status: int = 0  # The exit status of the process: 0, or 128 plus the number of the signal.
    is_resumable: bool = True  # Whether steps are left, so that the same command resumes the run.
    step: int = dataclasses.field(default=0, compare=False)  # From which it resumes.


TIME_IS_UP = Stop("train.max_minutes")
FINISHED = Stop("finished", is_resumable=False)
ALREADY_FINISHED = Stop("already finished", is_resumable=False)


class Stopped(BaseException):
    """Raised to leave work that the resumed run does again. No `except Exception` catches it."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


class Stopper:
    """Knows whether the run was asked to stop, or has no time left."""

    def __init__(
        self, agree: Callable[[int], int] = int, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts the clock of `limit`.

        Args:
          agree: maps this process's number to the greatest of all processes' numbers.
          now: the time in seconds.
        """
        self.signum = 0  # The first signal this process got.
        self._agree, self._now = agree, now
        self._begin, self._seconds = now(), math.inf

    def limit(self, minutes: float) -> None:
        """Stops the run so many minutes after this object was made; 0 = no limit."""
        self._seconds = 60 * minutes or math.inf

    def poll(self) -> Stop | None:
        """The reason to stop, if there is one. All processes must call it at the same point."""
        return self._agreed(self._now() - self._begin >= self._seconds)

    def check(self) -> None:
        """Raises Stopped if there was a signal. All processes must call it together."""
        if stop := self._agreed(is_time_up=False):
            raise Stopped(stop)

    def _agreed(self, is_time_up: bool) -> Stop | None:
        # 0: go on; 1: the time is up; above: one more than the signal, which counts for more.
        number = self._agree(self.signum + 1 if self.signum else int(is_time_up))
        if number < 2:
            return TIME_IS_UP if number else None
        return Stop(signal.Signals(number - 1).name, 128 + number - 1)

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """Handles a signal: remembers the first one, ends the process at the second."""
        if self.signum:
            with contextlib.suppress(OSError):
                if os.isatty(1):
                    os.write(1, SHOW_CURSOR)
            os._exit(128 + signum)
        self.signum = signum


@contextlib.contextmanager
def handling(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Calls `receive` at each of SIGNALS inside the block. For the main thread only.

    An ignored SIGHUP stays ignored: `nohup` means that the run outlives its terminal.
    """
    handled = [s for s in SIGNALS if s.name != "SIGHUP" or signal.getsignal(s) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, receive) for signum in handled}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def stopping_on_signals(agree: Callable[[int], int] = int) -> Iterator[Stopper]:
    """Yields a stopper that knows of the signals inside the block; see `handling`."""
    stopper = Stopper(agree)
    with handling(stopper.receive):
        yield stopper
