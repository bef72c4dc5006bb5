"""The clock of a run: how long it took, how fast it is, how long it will take."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours in front if there are any."""
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
        self._step_begin: float | None = None  # None before the first step, which compiles.
        self._steps, self._steps_s = 0, 0.0
        self._last_lap = self._steps, self._steps_s
        self._last_s: dict[str, float] = {}

    def step_done(self) -> None:
        """Call this after every step."""
        moment = self._now()
        if self._step_begin is not None:
            self._steps, self._steps_s = self._steps + 1, self._steps_s + moment - self._step_begin
        self._step_begin = moment

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The next step begins after this block."""
        yield
        self._step_begin = self._now()

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Measures other work than steps, such as "evaluating", for `left`."""
        begin = self._now()
        yield
        self._last_s[what] = self._now() - begin

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._start

    def lap_steps_per_s(self) -> float | None:
        """Speed since the last call; None if there was no step since, or only the first."""
        steps, seconds = self._steps - self._last_lap[0], self._steps_s - self._last_lap[1]
        self._last_lap = self._steps, self._steps_s
        return steps / seconds if seconds > 0 else None

    def left(self, steps: int, others: Mapping[str, int]) -> str:
        """The time that the rest of a run takes, such as "3:12"; "?" before the second step.

        A step takes the mean of the steps so far. `others` counts the other work to come, such as
        {"evaluating": 3}. It takes as long as it did the last time; before it was measured once,
        the answer leaves it out: "over 3:12".
        """
        if not self._steps:
            return "?" if steps else duration(0)
        seconds = steps * self._steps_s / self._steps
        seconds += sum(count * self._last_s.get(what, 0.0) for what, count in others.items())
        is_whole = all(what in self._last_s for what, count in others.items() if count)
        return duration(seconds) if is_whole else f"over {duration(seconds)}"
