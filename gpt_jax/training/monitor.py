"""What a run reports while it trains: a line of its log, a line on standard output, the bar.

log.py writes the log, clock.py measures, display.py shows.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from gpt_jax.config import TrainConfig
from gpt_jax.devices import processes
from gpt_jax.training.clock import Clock, duration
from gpt_jax.training.display import HEADINGS, RunConsole, facts, make_bar, show, table_line
from gpt_jax.training.log import MetricsLog
from gpt_jax.training.patience import evaluations_without_progress

SILENCE_SECONDS = 30.0  # Without a terminal: at least one line in this time.
NO_STEP = dict.fromkeys(("loss", "lr", "grad_norm"), math.nan)


def still_due(step: int, every: int, last: int) -> int:
    """How many times what happens every `every` steps, and at the last, comes after `step`."""
    return last // every - step // every + (last % every != 0 and step < last)


def _key(metric: str) -> str:
    """The key of the log under which a metric of the training step stands."""
    return "train/loss" if metric == "loss" else metric


class Monitor:
    """Writes a run's log and shows its progress, with a bar inside `with monitor.bar`."""

    def __init__(
        self,
        workdir: Path,
        step: int,
        config: TrainConfig,
        tokens_per_step: int,
        console: Console | None = None,
        now: Callable[[], float] = time.perf_counter,
        listeners: Sequence[Callable[[Mapping[str, Any]], None]] = (),
        bits_per_byte: Callable[[float], float] | None = None,
        shown: Sequence[str] = ("loss",),
    ) -> None:
        """Continues the log in `workdir` after `step`; the `listeners` get every entry, too.

        `bits_per_byte` converts a validation loss in nats per token; None = it is not logged.
        `shown`: metrics beside the bar; the first is also in the table.
        """
        self._log = MetricsLog(workdir / "metrics.jsonl", step, processes.is_first())
        self._clock = Clock(self._log.elapsed_s, now)
        self._config, self._tokens_per_step, self._listeners = config, tokens_per_step, listeners
        self._bits_per_byte, self._shown = bits_per_byte, shown
        self._step, self._doing = step, "compiling"
        self._metrics = self._speed = ""
        self._last_line_s = -math.inf
        self._console = console or RunConsole()
        self.bar, self.pause = make_bar(self._console), self._clock.pause
        self._task = self.bar.add_task(self._status(), total=config.steps, completed=step)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows what the run does in this block, such as "evaluating", and measures it."""
        before, self._doing = self._doing, what
        self._update_bar()
        try:
            with self._clock.timing(what):
                yield
        finally:
            self._doing = before
            self._update_bar()

    def step_done(self, step: int) -> None:
        """Call this after every step; `step` counts them all."""
        self._clock.step_done()
        self._step, self._doing = step, "training"
        self._update_bar()

    def say(self, text: str) -> None:
        """Prints text as it is."""
        show(self._console, text)

    def say_facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Prints labels and their texts in two columns."""
        self.say(facts(rows, self._console.width))

    def record(
        self, step: int, metrics: Mapping[str, Any], figures: Mapping[str, float] | None
    ) -> None:
        """Writes a line of the log and shows it.

        `metrics` come from step.py. `figures`: of an evaluation, see `Run.evaluate`; None without.
        """
        speed = self._clock.lap_steps_per_s()
        entry = {
            "step": step,
            "train/loss": float(metrics["loss"]),
            "lr": float(metrics["lr"]),
            "grad_norm": float(metrics["grad_norm"]),
            "tokens_per_s": speed and round(speed * self._tokens_per_step),
            "elapsed_s": round(self._clock.elapsed_s, 3),
            **{name: float(value) for name, value in metrics.items() if name not in NO_STEP},
        }
        if figures is not None:
            entry |= self._evaluated(figures)
        self._log.append(entry)
        self._tell(entry)
        self._show(entry)

    def record_beginning(self, figures: Mapping[str, float]) -> None:
        """Writes the first line of the log, for step 0, if a run evaluates before it trains."""
        self._log.drop_after(-1)  # Lines of a run that was killed before its first checkpoint.
        self.record(0, NO_STEP, figures)

    def flush(self) -> None:
        """Waits until the log is on the disk."""
        self._log.flush()

    @processes.on_first
    def lacks_evaluation(self, step: int) -> bool:
        """Whether the log does not end with the validation loss of `step`."""
        last = self._log.last
        return step > 0 and (last["step"] < step or "val/loss" not in last)

    @processes.on_first
    def is_out_of_patience(self) -> bool:
        """Whether so many evaluations in a row as `train.patience` found no lower loss."""
        losses = self._log.losses.values()
        return evaluations_without_progress(losses) >= self._config.patience

    @processes.on_first
    def add_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the evaluation of `step` into the last line of the log, or a new line.

        The log has no line of `step` if the run was stopped between two lines.
        """
        if self._log.last["step"] < step:
            return self.record(step, NO_STEP, figures)
        self._tell(self._log.extend_last(**self._evaluated(figures)))

    def _tell(self, entry: Mapping[str, Any]) -> None:
        for listener in self._listeners:
            listener(entry)

    def _evaluated(self, figures: Mapping[str, float]) -> dict[str, float]:
        """What a line of the log says about an evaluation."""
        convert = self._bits_per_byte
        bits = {"val/bits_per_byte": convert(figures["loss"])} if convert else {}
        return {f"val/{name}": float(value) for name, value in figures.items()} | bits

    def _left(self) -> str:
        """The time left, in words."""
        c, step = self._config, self._step
        evaluations = still_due(step, c.eval_every, c.steps)
        saves = still_due(step, c.checkpoint_every, c.steps)
        others = {"evaluating": evaluations, "saving": saves}
        if c.sample_tokens:
            others["sampling"] = evaluations  # The last one is longer, but not by much.
        return self._clock.left(c.steps - step, others)

    def _status(self) -> str:
        """The text beside the bar."""
        parts = [f"step {self._step:,}/{self._config.steps:,}"]
        parts.append(self._metrics if self._doing == "training" else self._doing)
        if self._doing != "compiling" and self._step < self._config.steps:
            parts.append(f"{self._left()} left")
        if self._doing == "training":
            parts.append(self._speed)
        return "  ".join(filter(None, parts))

    def _update_bar(self) -> None:
        self.bar.update(self._task, completed=self._step, description=self._status())

    def _show(self, entry: Mapping[str, Any]) -> None:
        """Updates the bar; prints evaluations and, without a bar, a line after a silence."""
        if not math.isnan(entry["lr"]):
            pairs = [(name.split("/")[-1], entry[_key(name)]) for name in self._shown]
            self._metrics = "  ".join(f"{name} {value:.4f}" for name, value in pairs)
        if entry["tokens_per_s"]:
            self._speed = f"{entry['tokens_per_s']:,} tokens/s"
        self._update_bar()
        silence_s = entry["elapsed_s"] - self._last_line_s
        is_silent = silence_s > SILENCE_SECONDS and not self._console.is_terminal
        if "val/loss" in entry or is_silent:
            if self._last_line_s == -math.inf:
                self.say(table_line([text.format(self._shown[0]) for text in HEADINGS]))
            self.say(table_line(self._cells(entry)))
            self._last_line_s = entry["elapsed_s"]

    def _cells(self, entry: Mapping[str, Any]) -> list[str]:
        """A line of the table."""
        name = self._shown[0]
        val, speed = entry.get(f"val/{name}"), entry["tokens_per_s"]
        return [
            f"{entry['step']:,}",
            "-" if math.isnan(entry["lr"]) else f"{entry[_key(name)]:.4f}",
            "-" if val is None else f"{val:.4f}",
            f"{speed:,}" if speed else "-",
            duration(entry["elapsed_s"]),
            self._left(),
        ]
