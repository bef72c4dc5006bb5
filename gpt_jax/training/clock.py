"""The clock of a run: how long it took, how fast it is, how long it will take."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def duration(seconds: float | None) -> str:
    """Minutes and seconds, with hours in front if there are any; "?" for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Clock:
    """Measures a run.

    `elapsed_s` starts with the first batch and includes compilation; a resumed run continues the
    count of its log. The speed covers training steps only: not the first, which compiles, and no
    evaluations or checkpoints.
    """

    def __init__(self, elapsed_s: float, now: Callable[[], float] = time.perf_counter) -> None:
        """`elapsed_s`: how long the run took before it was resumed; `now`: the time in seconds."""
        self._now = now
        self._start = now() - elapsed_s
        self._step_begin = 0.0
        self._has_compiled = False
        self._steps = self._lap_steps = 0
        self._steps_s = self._lap_s = 0.0
        self._last_s: dict[str, float] = {}

    def step_done(self) -> None:
        """Call this after every step."""
        moment = self._now()
        if self._has_compiled:
            seconds = moment - self._step_begin
            self._steps, self._steps_s = self._steps + 1, self._steps_s + seconds
            self._lap_steps, self._lap_s = self._lap_steps + 1, self._lap_s + seconds
        self._has_compiled, self._step_begin = True, moment

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The next step begins after this block."""
        yield
        self._step_begin = self._now()

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Measures other work than steps, such as "evaluating", for `seconds_left`."""
        begin = self._now()
        yield
        self._last_s[what] = self._now() - begin

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._start

    def lap_steps_per_s(self) -> float | None:
        """Speed since the last call; None if there was no step since, or only the first."""
        steps, seconds = self._lap_steps, self._lap_s
        self._lap_steps, self._lap_s = 0, 0.0
        return steps / seconds if seconds > 0 else None

    def left(self, steps: int, others: Mapping[str, int]) -> str:
        """The time that the rest of a run takes, in words.

        A step takes the mean of the steps so far. Other work takes as long as it did the last
        time; before it was measured once, the answer is "over ..." and leaves it out.

        Args:
          others: how many times each kind of other work comes, such as {"evaluating": 3}.

        Returns: such as "3:12", "over 3:12", or "?" before the second step.
        """
        if not self._steps:
            return "?" if steps else duration(0)
        seconds = steps * self._steps_s / self._steps
        seconds += sum(count * self._last_s.get(what, 0.0) for what, count in others.items())
        is_whole = all(what in self._last_s for what, count in others.items() if count)
        return duration(seconds) if is_whole else f"over {duration(seconds)}"
