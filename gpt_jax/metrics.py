"""What a run tells while it works: the JSON-lines log, the progress display, honest clocks."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

QUIET_SECONDS = 30.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was torn by a crash is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


class MetricsLog:
    """metrics.jsonl: one JSON object per line, each with its `step`."""

    def __init__(self, path: Path, step: int) -> None:
        """Opens the log of a run that goes on after `step` steps; later lines are dropped.

        They are of steps made after the last checkpoint, which will be made again.
        """
        kept = [entry for entry in read_metrics(path) if entry["step"] <= step]
        path.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._path = path
        self.elapsed_s: float = kept[-1]["elapsed_s"] if kept else 0.0

    def write(self, entry: dict[str, Any]) -> None:
        """Adds a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))


def _line(entry: dict[str, Any]) -> str:
    """A line of JSON, which has no NaN and no infinity: they become null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
    return json.dumps(finite) + "\n"


class Clock:
    """Times a run: how fast it trains, how long it took, how long it will take.

    `elapsed_s` counts everything, earlier parts of a resumed run included. The speed counts training
    steps alone: neither the first (which compiles) nor evaluations and checkpoints.
    """

    def __init__(self, elapsed_s: float = 0.0, now: Callable[[], float] = time.perf_counter) -> None:
        """`elapsed_s`: seconds the run took before it was resumed; `now`: gives seconds."""
        self._now = now
        self._start = now() - elapsed_s
        self._first_step_end = self._step_begin = 0.0
        self._steps = self._lap_steps = 0
        self._lap_s = 0.0

    def step_done(self) -> None:
        """To be called after every step."""
        moment = self._now()
        if self._steps == 0:
            self._first_step_end = moment
        else:
            self._lap_steps += 1
            self._lap_s += moment - self._step_begin
        self._steps += 1
        self._step_begin = moment

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is not training."""
        yield
        self._step_begin = self._now()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._start

    def lap_steps_per_s(self) -> float | None:
        """Training speed since the last call; None where only the first step was made since."""
        steps, seconds = self._lap_steps, self._lap_s
        self._lap_steps, self._lap_s = 0, 0.0
        return steps / seconds if seconds > 0 else None

    def seconds_left(self, steps_left: int) -> float | None:
        """Time for the steps to come, evaluations and checkpoints as frequent as so far."""
        if self._steps < 2:
            return None
        return steps_left * (self._now() - self._first_step_end) / (self._steps - 1)


def duration(seconds: float | None) -> str:
    """Minutes and seconds, with hours in front where there are any; "?" for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display:
    """Lines of text, with a live bar below them where the output is a terminal."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        """`steps`: of the whole run."""
        self._steps = steps
        self._console = console or Console()
        self._last_line_s = -QUIET_SECONDS
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=steps)

    def say(self, line: str) -> None:
        """Prints a line as it is."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Shows the bar while what is inside works."""
        with self._bar:
            yield

    def show(self, entry: dict[str, Any], seconds_left: float | None) -> None:
        """Moves the bar to an entry of the log; prints a line for an evaluation.

        Without a bar, a line is printed for any entry after a while of silence.
        """
        line = self._status(entry, seconds_left)
        self._bar.update(self._task, completed=entry["step"], description=line)
        silent_s = entry["elapsed_s"] - self._last_line_s
        if "val/loss" in entry or (silent_s >= QUIET_SECONDS and not self._console.is_terminal):
            self.say(line)
            self._last_line_s = entry["elapsed_s"]

    def _status(self, entry: dict[str, Any], seconds_left: float | None) -> str:
        parts = [f"step {entry['step']}/{self._steps}", f"train {entry['train/loss']:.4f}"]
        if "val/loss" in entry:
            parts.append(f"val {entry['val/loss']:.4f}")
        if entry["tokens_per_s"]:
            parts.append(f"{entry['tokens_per_s']:,} tokens/s")
        parts.append(f"elapsed {duration(entry['elapsed_s'])}, left {duration(seconds_left)}")
        return "  ".join(parts)
