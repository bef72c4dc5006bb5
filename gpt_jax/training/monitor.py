"""What a run tells while it works: the JSON-lines log, the progress display, honest clocks."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gpt_jax.devices import processes
from gpt_jax.files import replacing
from gpt_jax.training.log import duration, json_line, read_metrics

SILENCE_SECONDS = 30.0


class Clock:
    """Times a run: how fast it trains, how long it took, how long it will take.

    `elapsed_s` counts from the first batch on, compiling included, and goes on where the log of a
    resumed run ends. The speed counts steps alone: neither the first (which compiles) nor
    evaluations and checkpoints.
    """

    def __init__(self, elapsed_s: float, now: Callable[[], float] = time.perf_counter) -> None:
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
        """What happens inside, right after a step, is no part of the next one."""
        yield
        self._step_begin = self._now()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._start

    def lap_steps_per_s(self) -> float | None:
        """Speed since the last call; None where nothing but the first step was made since."""
        steps, seconds = self._lap_steps, self._lap_s
        self._lap_steps, self._lap_s = 0, 0.0
        return steps / seconds if seconds > 0 else None

    def seconds_left(self, steps_left: int) -> float | None:
        """Time for the steps to come, evaluations and checkpoints as frequent as so far."""
        if self._steps < 2:
            return None
        return steps_left * (self._now() - self._first_step_end) / (self._steps - 1)


class RunConsole(Console):
    """Where standard output is closed early (`train.py | head`), the run goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):  # stderr may be the same closed pipe.
            print(
                "note: standard output is closed; the run goes on, and metrics.jsonl tells how",
                file=sys.stderr,
                flush=True,
            )


class Monitor:
    """Writes a run's log and shows its progress: a bar on a terminal, plain lines elsewhere."""

    def __init__(
        self,
        workdir: Path,
        step: int,
        last_step: int,
        tokens_per_step: int,
        console: Console | None = None,
        now: Callable[[], float] = time.perf_counter,
        listener: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    ) -> None:
        """Goes on with the log in `workdir` after `step` of `last_step` steps.

        Lines of later steps are dropped: they came after the last checkpoint, and will come again.

        Args:
          listener: is called with every entry of the log, too.
        """
        self._path, self._writes = workdir / "metrics.jsonl", processes.is_first()
        kept = [entry for entry in read_metrics(self._path) if entry["step"] <= step]
        self._replace_log(kept)
        self._last_entry = kept[-1] if kept else {"step": 0}
        self._clock = Clock(kept[-1]["elapsed_s"] if kept else 0.0, now)
        self._last_step, self._tokens_per_step = last_step, tokens_per_step
        self._console = console or RunConsole()
        self._bar = Progress(
            BarColumn(bar_width=16),  # With the text beside it narrower than 80 columns.
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=last_step, completed=step)
        self._last_line_s = -math.inf
        self._listener = listener
        self.pause = self._clock.pause

    def step_done(self, step: int) -> None:
        """To be called after every step, `step` in all."""
        self._clock.step_done()
        self._bar.update(self._task, completed=step)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Shows the bar while what is inside works."""
        with self._bar:
            yield

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows what the run is doing, such as "evaluating", instead of a step."""
        before = self._bar.tasks[0].description
        self._bar.update(self._task, description=what)
        yield
        self._bar.update(self._task, description=before)

    def say(self, line: str) -> None:
        """Prints a line as it is."""
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def tell(self, step: int, metrics: Mapping[str, Any], val_loss: float | None) -> None:
        """Writes a line of the log and shows it.

        Args:
          metrics: of the train step, see `train_step.make_train_step`.
          val_loss: in nats per token; None where the run did not evaluate.
        """
        speed = self._clock.lap_steps_per_s()
        entry = {
            "step": step,
            "train/loss": float(metrics["loss"]),
            "lr": float(metrics["lr"]),
            "grad_norm": float(metrics["grad_norm"]),
            "tokens_per_s": speed and round(speed * self._tokens_per_step),
            "elapsed_s": round(self._clock.elapsed_s, 3),
        }
        if val_loss is not None:
            entry["val/loss"] = val_loss
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json_line(entry))
        self._listener(entry)
        self._show(entry)

    def tell_beginning(self, val_loss: float) -> None:
        """Writes the line of step 0, the log's first, of a run that evaluates before it trains."""
        self._replace_log([])  # What a run wrote that was killed before it saved.
        self.tell(0, dict.fromkeys(("loss", "lr", "grad_norm"), math.nan), val_loss)

    @processes.on_first
    def lacks_evaluation(self, step: int) -> bool:
        """Whether the log does not end with the held-out loss of `step`."""
        return step > 0 and (self._last_entry["step"] < step or "val/loss" not in self._last_entry)

    @processes.on_first
    def add_evaluation(self, step: int, val_loss: float) -> None:
        """Writes the held-out loss of `step` into the last line of the log, or a line of its own.

        There is none of `step` where the run was stopped between two lines.
        """
        if self._last_entry["step"] < step:
            return self.tell(step, dict.fromkeys(("loss", "lr", "grad_norm"), math.nan), val_loss)
        entries = read_metrics(self._path)
        entry = entries[-1] | {"val/loss": val_loss}
        self._replace_log([*entries[:-1], entry])
        self._listener(entry)

    def _replace_log(self, entries: list[dict[str, Any]]) -> None:
        if self._writes:
            with replacing(self._path) as file:
                file.write("".join(map(json_line, entries)).encode("utf-8"))

    def _show(self, entry: dict[str, Any]) -> None:
        """Shows an entry beside the bar; prints evaluations and, without a bar, after a silence."""
        speed = f"  {entry['tokens_per_s']:,} tokens/s" if entry["tokens_per_s"] else ""
        left = duration(self._clock.seconds_left(self._last_step - entry["step"]))
        progress = f"step {entry['step']}/{self._last_step}"
        if not math.isnan(entry["lr"]):  # There was a step, and not an evaluation alone.
            progress += f"  train {entry['train/loss']:.4f}"
        self._bar.update(self._task, description=f"{progress}{speed}  {left} left")
        silent_s = entry["elapsed_s"] - self._last_line_s
        if "val/loss" in entry or (silent_s > SILENCE_SECONDS and not self._console.is_terminal):
            held_out = f"  val {entry['val/loss']:.4f}" if "val/loss" in entry else ""
            elapsed = f"  {duration(entry['elapsed_s'])} elapsed, {left} left"
            self.say(f"{progress}{held_out}{speed}{elapsed}")
            self._last_line_s = entry["elapsed_s"]
