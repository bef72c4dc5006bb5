"""The log survives crashes, clocks leave out what is no training, lines go where they should."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from gpt_jax.training.log import read_metrics
from gpt_jax.training.monitor import Clock, Monitor, duration

METRICS = {"loss": 2.5, "lr": 0.001, "grad_norm": 0.7}


class Time:
    """A clock that stands still unless told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def monitor(workdir, step=0, time=None, terminal=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    return Monitor(workdir, step, 100, 4096, console, time or Time()), console.file


def test_speed_leaves_out_compiling_and_pauses():
    time = Time()
    clock = Clock(5.0, time)
    for seconds in (30, 2, 2):  # The first step compiles.
        time.now += seconds
        clock.step_done()
        with clock.pause():
            time.now += 10
    assert clock.lap_steps_per_s() == pytest.approx(0.5)
    assert clock.lap_steps_per_s() is None
    assert clock.elapsed_s == pytest.approx(5 + 34 + 30)
    assert clock.seconds_left(6) == pytest.approx(6 * (4 + 30) / 2)


def test_after_the_first_step_nothing_is_known():
    clock = Clock(0.0, Time())
    clock.step_done()
    assert clock.lap_steps_per_s() is None
    assert clock.seconds_left(9) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7322, "2:02:02")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_line_of_the_log_has_the_frozen_keys(tmp_path):
    time = Time()
    watch, _ = monitor(tmp_path, time=time)
    for step in (1, 2, 3):
        time.now += 2
        watch.step_done(step)
    watch.tell(10, METRICS, None)
    watch.tell(20, METRICS, 2.25)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first == {
        "step": 10,
        "train/loss": 2.5,
        "lr": 0.001,
        "grad_norm": 0.7,
        "tokens_per_s": 2048,
        "elapsed_s": 6.0,
    }
    assert second["val/loss"] == 2.25
    assert second["tokens_per_s"] is None


def test_what_is_not_finite_becomes_null(tmp_path):
    monitor(tmp_path)[0].tell(1, METRICS | {"loss": float("nan")}, float("inf"))
    text = (tmp_path / "metrics.jsonl").read_text()
    entry = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert entry["train/loss"] is entry["val/loss"] is None


def test_a_resumed_log_drops_later_lines_and_a_torn_one_and_counts_on(tmp_path):
    time = Time()
    watch, _ = monitor(tmp_path, time=time)
    for step in (10, 20, 30):
        time.now += 7
        watch.step_done(step)
        watch.tell(step, METRICS, None)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/')
    time.now += 1000
    resumed, _ = monitor(tmp_path, step=20, time=time)
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]
    time.now += 1
    resumed.step_done(30)
    resumed.tell(30, METRICS, None)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["elapsed_s"] == pytest.approx(15)


def test_without_a_terminal_lines_come_with_evaluations_and_after_a_silence(tmp_path):
    time = Time()
    watch, out = monitor(tmp_path, time=time)
    with watch.bar():
        for step in range(10, 100, 10):
            time.now += 8
            watch.step_done(step)
            watch.tell(step, METRICS, 2.25 if step == 30 else None)
    steps = [int(line.split()[1].split("/")[0]) for line in out.getvalue().splitlines()]
    assert steps == [10, 30, 70]
    assert "step 30/100  train 2.5000  val 2.2500" in out.getvalue()


def test_on_a_terminal_there_is_a_bar_and_a_line_per_evaluation(tmp_path):
    """Of 80 columns; nothing of the bar is cut off."""
    time = Time()
    watch, out = monitor(tmp_path, time=time, terminal=True)
    with watch.bar():
        for step in (50, 60):
            time.now += 0.05
            watch.step_done(step)
            watch.tell(step, METRICS, 2.25 if step == 60 else None)
    text = out.getvalue()
    assert "━" in text
    assert "…" not in text
    assert "step 60/100  train 2.5000  81,920 tokens/s  0:02 left" in text
    assert "step 60/100  train 2.5000  val 2.2500  81,920 tokens/s" in text
    assert text.count("\n") < 4  # The entry without an evaluation moved the bar and left no line.


def test_text_is_printed_as_it_is(tmp_path):
    watch, out = monitor(tmp_path)
    watch.say("[bold]no markup[/bold] :smile: " + "x" * 300)
    assert out.getvalue() == "[bold]no markup[/bold] :smile: " + "x" * 300 + "\n"


def test_no_file_is_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_listener_hears_every_entry(tmp_path):
    heard = []
    console = Console(file=io.StringIO())
    watch = Monitor(tmp_path, 0, 100, 4096, console, Time(), heard.append)
    watch.tell(10, METRICS, None)
    watch.tell(20, METRICS, 2.0)
    assert heard == read_metrics(tmp_path / "metrics.jsonl")


def test_a_run_goes_on_when_standard_output_is_closed(tmp_path):
    """As in `train.py | head`."""
    code = (
        "import sys, pathlib\n"
        "from gpt_jax.metrics import Monitor\n"
        "watch = Monitor(pathlib.Path(sys.argv[1]), 0, 100, 1)\n"
        "for _ in range(3): watch.say('x' * 100_000)\n"
        "len(sys.argv) > 2 or print('end', file=sys.stderr)"
    )
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    note = "note: standard output is closed; the run goes on, and metrics.jsonl tells how"
    assert (done.returncode, done.stderr.splitlines()) == (0, [note, "end"])
    both = subprocess.run([*command, "quiet"], stdout=write, stderr=write)
    os.close(write)
    assert both.returncode == 0
