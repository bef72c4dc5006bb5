"""The monitor writes the log and shows lines and a bar at the right moments."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console
from support import ROOT

from gpt_jax.config import TrainConfig
from gpt_jax.training.log import read_metrics
from gpt_jax.training.monitor import Monitor, still_due

METRICS = {"loss": 2.5, "lr": 0.001, "grad_norm": 0.7}
TRAIN = TrainConfig(steps=100, eval_every=30, checkpoint_every=50)


class Time:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def monitor(workdir, step=0, time=None, terminal=False, config=TRAIN):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    return Monitor(workdir, step, config, 4096, console, time or Time()), console.file


def test_an_entry_of_the_log_has_the_frozen_keys(tmp_path):
    time = Time()
    watch, _ = monitor(tmp_path, time=time)
    for step in (1, 2, 3):
        time.now += 2
        watch.step_done(step)
    watch.record(10, METRICS, None)
    watch.record(20, METRICS, {"loss": 2.25})
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


def test_numbers_that_are_not_finite_become_null(tmp_path):
    monitor(tmp_path)[0].record(1, METRICS | {"loss": float("nan")}, {"loss": float("inf")})
    text = (tmp_path / "metrics.jsonl").read_text()
    entry = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert entry["train/loss"] is entry["val/loss"] is None


def test_a_resumed_run_drops_later_and_torn_log_lines_and_continues_the_time(tmp_path):
    time = Time()
    watch, _ = monitor(tmp_path, time=time)
    for step in (10, 20, 30):
        time.now += 7
        watch.step_done(step)
        watch.record(step, METRICS, None)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/')
    time.now += 1000
    resumed, _ = monitor(tmp_path, step=20, time=time)
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]
    time.now += 1
    resumed.step_done(30)
    resumed.record(30, METRICS, None)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["elapsed_s"] == pytest.approx(15)


def test_a_missing_evaluation_is_added_to_the_last_line_or_as_a_new_one(tmp_path):
    watch, _ = monitor(tmp_path)
    watch.record(10, METRICS, None)
    assert watch.lacks_evaluation(10)
    watch.add_evaluation(10, {"loss": 2.25})
    assert not watch.lacks_evaluation(10)
    watch.add_evaluation(15, {"loss": 2.0})
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [(entry["step"], entry["val/loss"]) for entry in entries] == [(10, 2.25), (15, 2.0)]
    assert [entry["train/loss"] for entry in entries] == [2.5, None]


def test_a_pipe_gets_a_line_per_evaluation_and_after_30_silent_seconds(tmp_path):
    time = Time()
    watch, out = monitor(tmp_path, time=time)
    with watch.bar:
        for step in range(10, 100, 10):
            time.now += 8
            watch.step_done(step)
            watch.record(step, METRICS, {"loss": 2.25} if step == 30 else None)
    headings, *lines = [line.split() for line in out.getvalue().splitlines()]
    assert headings[:3] == ["step", "training", "loss"]
    assert [line[0] for line in lines] == ["10", "30", "70"]
    assert lines[1][:3] == ["30", "2.5000", "2.2500"]
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_a_terminal_of_80_columns_gets_a_bar_and_a_line_per_evaluation(tmp_path):
    time = Time()
    watch, out = monitor(tmp_path, time=time, terminal=True)
    with watch.bar:
        for step in (50, 60):
            time.now += 0.05
            watch.step_done(step)
            watch.record(step, METRICS, {"loss": 2.25} if step == 60 else None)
        watch.bar.refresh()
    text = out.getvalue()
    assert "━" in text
    assert "…" not in text
    assert "step 60/100  loss 2.5000  over 0:02 left  81,920 tokens/s" in text
    [line] = [line for line in text.splitlines() if "2.2500" in line]
    assert line.split()[-5:] == ["2.2500", "81,920", "0:00", "over", "0:02"]


def test_the_bar_names_the_work_that_is_not_a_step(tmp_path):
    time = Time()
    watch, _ = monitor(tmp_path, time=time)
    assert watch._status().split() == ["step", "0/100", "compiling"]
    for step in (1, 2):
        time.now += 1
        watch.step_done(step)
    with watch.doing("evaluating"):
        assert watch._status() == "step 2/100  evaluating  over 1:38 left"
    assert "evaluating" not in watch._status()


def test_the_time_left_counts_other_work_once_it_was_measured(tmp_path):
    time = Time()
    watch, _ = monitor(tmp_path, time=time)
    for step in (1, 2):
        time.now += 1
        watch.step_done(step)
    for what, seconds in (("evaluating", 20), ("evaluating", 5), ("saving", 3)):
        with watch.doing(what):
            time.now += seconds
    # 98 steps of 1 s, 4 evaluations (30, 60, 90, 100) of 5 s, 2 checkpoints (50, 100) of 3 s.
    assert "over 2:04 left" in watch._status()
    with watch.doing("sampling"):
        time.now += 2
    assert "  2:12 left" in watch._status()  # Each evaluation has a sample.


def test_without_samples_the_time_left_waits_for_none(tmp_path):
    time = Time()
    config = TrainConfig(steps=10, eval_every=5, checkpoint_every=10, sample_tokens=0)
    watch, _ = monitor(tmp_path, time=time, config=config)
    for step in (1, 2):
        time.now += 1
        watch.step_done(step)
    for what in ("evaluating", "saving"):
        with watch.doing(what):
            time.now += 1
    assert "  0:11 left" in watch._status()


@pytest.mark.parametrize(
    ("step", "every", "last", "count"),
    [(0, 30, 100, 4), (30, 30, 100, 3), (99, 30, 100, 1), (100, 30, 100, 0), (0, 50, 100, 2)],
)
def test_still_due_counts_the_last_step_once(step, every, last, count):
    assert still_due(step, every, last) == count


@pytest.mark.parametrize("steps", [100, 600_000])
def test_the_bar_and_the_lines_fit_80_columns_with_large_numbers(tmp_path, steps):
    time = Time()
    config = TrainConfig(steps=steps, eval_every=steps)
    watch, out = monitor(tmp_path, time=time, config=config)
    watch._tokens_per_step = 4_000_000
    for step in (steps - 50, steps - 49):
        time.now += 3000
        watch.step_done(step)
    time.now += 1e6
    watch.record(steps - 49, METRICS, {"loss": 2.25})
    assert len(watch._status()) <= 74
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_say_prints_text_as_it_is(tmp_path):
    watch, out = monitor(tmp_path)
    watch.say("[bold]no markup[/bold] :smile: " + "x" * 300)
    assert out.getvalue() == "[bold]no markup[/bold] :smile: " + "x" * 300 + "\n"


def test_a_listener_gets_every_entry(tmp_path):
    heard = []
    console = Console(file=io.StringIO())
    watch = Monitor(tmp_path, 0, TRAIN, 4096, console, Time(), [heard.append])
    watch.record(10, METRICS, None)
    watch.record(20, METRICS, {"loss": 2.0})
    assert heard == read_metrics(tmp_path / "metrics.jsonl")


def test_a_run_continues_when_standard_output_is_closed(tmp_path):
    """As in `train.py | head`."""
    code = (
        "import sys, pathlib\n"
        "from gpt_jax.config import TrainConfig\n"
        "from gpt_jax.training.monitor import Monitor\n"
        "watch = Monitor(pathlib.Path(sys.argv[1]), 0, TrainConfig(), 1)\n"
        "for _ in range(3): watch.say('x' * 100_000)\n"
        "len(sys.argv) > 2 or print('end', file=sys.stderr)"
    )
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    note = "note: standard output is closed; the run continues and writes metrics.jsonl"
    assert (done.returncode, done.stderr.splitlines()) == (0, [note, "end"])
    both = subprocess.run([*command, "quiet"], stdout=write, stderr=write, cwd=ROOT)
    os.close(write)
    assert both.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_run_continues_when_standard_output_is_full(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from gpt_jax.config import TrainConfig\n"
        "from gpt_jax.training.monitor import Monitor\n"
        "watch = Monitor(pathlib.Path(sys.argv[1]), 0, TrainConfig(), 1)\n"
        "for _ in range(3): watch.say('x' * 100_000)\n"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code, tmp_path]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    note = "note: standard output cannot be written (No space left on device); the run continues"
    assert (done.returncode, done.stderr) == (0, f"{note} and writes metrics.jsonl\n")
