"""What a run reports while it trains: a line of its log, a line on standard output, the bar.

log.py writes the log, clock.py measures, display.py shows.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from gpt_jax.config import TrainConfig
from gpt_jax.devices import processes
from gpt_jax.training.clock import Clock, duration
from gpt_jax.training.display import (
    LABEL_WIDTH,
    LossTable,
    RunConsole,
    facts,
    fitted,
    make_bar,
    show,
)
from gpt_jax.training.log import MetricsLog

SILENCE_SECONDS = 30.0  # Without a terminal: at least one line in this time.
NO_STEP = dict.fromkeys(("loss", "lr", "grad_norm"), math.nan)


def still_due(step: int, every: int, last: int) -> int:
    """How many times what happens every `every` steps, and at the last, comes after `step`."""
    return last // every - step // every + (last % every != 0 and step < last)


class Monitor:
    """Writes a run's log and shows its progress."""

    def __init__(
        self,
        workdir: Path,
        step: int,
        config: TrainConfig,
        tokens_per_step: int,
        console: Console | None = None,
        now: Callable[[], float] = time.perf_counter,
        listener: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    ) -> None:
        """Continues the log in `workdir` after `step`.

        Args:
          listener: gets every entry of the log, too.
        """
        self._log = MetricsLog(workdir / "metrics.jsonl", step, processes.is_first())
        self._clock = Clock(self._log.last.get("elapsed_s", 0.0), now)
        self._config, self._tokens_per_step, self._listener = config, tokens_per_step, listener
        self._step, self._doing = step, "compiling"
        self._loss = self._speed = ""
        self._console = console or RunConsole()
        self._bar = make_bar(self._console, self._status)
        self._task = self._bar.add_task("", total=config.steps, completed=step)
        self._table = LossTable(config.steps)
        self._last_line_s, self._widest = -math.inf, 0
        self.pause = self._clock.pause

    @property
    def width(self) -> int:
        """Columns of standard output; 80 where it is no terminal."""
        return self._console.width

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Shows the bar during this block."""
        with self._bar:
            yield

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows what the run does in this block, such as "evaluating", and measures it."""
        before, self._doing = self._doing, what
        try:
            with self._clock.timing(what):
                yield
        finally:
            self._doing = before

    def step_done(self, step: int) -> None:
        """Call this after every step; `step` counts them all."""
        self._clock.step_done()
        self._step, self._doing = step, "training"
        self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Prints text as it is."""
        show(self._console, text)

    def say_facts(self, rows: Iterable[tuple[str, str]], label_width: int = LABEL_WIDTH) -> None:
        """Prints labels and their texts in two columns."""
        self.say(facts(rows, self._console.width, label_width))

    def record(self, step: int, metrics: Mapping[str, Any], val_loss: float | None) -> None:
        """Writes a line of the log and shows it.

        Args:
          metrics: of the training step, see step.py.
          val_loss: validation loss in nats per token; None if the run did not evaluate.
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
        self._log.append(entry)
        self._listener(entry)
        self._show(entry)

    def record_beginning(self, val_loss: float) -> None:
        """Writes the first line of the log, for step 0, if a run evaluates before it trains."""
        self._log.replace([])  # Lines of a run that was killed before its first checkpoint.
        self.record(0, NO_STEP, val_loss)

    @processes.on_first
    def lacks_evaluation(self, step: int) -> bool:
        """Whether the log does not end with the validation loss of `step`."""
        last = self._log.last
        return step > 0 and (last["step"] < step or "val/loss" not in last)

    @processes.on_first
    def add_evaluation(self, step: int, val_loss: float) -> None:
        """Writes the validation loss of `step` into the last line of the log, or a new line.

        The log has no line of `step` if the run was stopped between two lines.
        """
        if self._log.last["step"] < step:
            return self.record(step, NO_STEP, val_loss)
        self._listener(self._log.extend_last(**{"val/loss": val_loss}))

    def _left(self) -> str:
        c, step = self._config, self._step
        return self._clock.left(
            c.steps - step,
            {
                "evaluating": still_due(step, c.eval_every, c.steps),
                "saving": still_due(step, c.checkpoint_every, c.steps),
            },
        )

    def _status(self) -> str:
        """The text beside the bar."""
        trains = self._doing == "training"
        has_steps_left = self._doing != "compiling" and self._step < self._config.steps
        parts = [
            f"step {self._step:,}/{self._config.steps:,}",
            self._loss if trains else self._doing,
            f"{self._left()} left" if has_steps_left else "",
            self._speed if trains else "",
        ]
        room = self._console.width - 6  # The bar has at least 5 columns.
        status = fitted(parts, room)
        self._widest = max(self._widest, len(status))  # The bar shall not change its length.
        return status.ljust(min(self._widest, room))

    def _show(self, entry: Mapping[str, Any]) -> None:
        """Updates the status; prints evaluations and, without a bar, a line after a silence."""
        speed, has_step = entry["tokens_per_s"], not math.isnan(entry["lr"])
        self._loss = f"loss {entry['train/loss']:.4f}" if has_step else ""
        self._speed = f"{speed:,} tokens/s" if speed else self._speed
        silence_s = entry["elapsed_s"] - self._last_line_s
        is_silent = silence_s > SILENCE_SECONDS and not self._console.is_terminal
        if "val/loss" in entry or is_silent:
            self.say(self._table.line(self._cells(entry)))
            self._last_line_s = entry["elapsed_s"]

    def _cells(self, entry: Mapping[str, Any]) -> list[str]:
        """A line of the table of losses."""
        train, val = entry["train/loss"], entry.get("val/loss")
        return [
            f"{entry['step']:,}",
            "-" if math.isnan(entry["lr"]) else f"{train:.4f}",
            "-" if val is None else f"{val:.4f}",
            f"{entry['tokens_per_s']:,}" if entry["tokens_per_s"] else "-",
            duration(entry["elapsed_s"]),
            self._left(),
        ]
