"""A run that is asked to stop saves the current step, and the resumed run equals a straight one."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import soak
from soak import log
from steps import share_steps
from support import ROOT

from gpt_jax.devices.batch_layout import make_batch_layout
from gpt_jax.devices.device_count import start_devices
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.runs.checkpoint_list import Saved
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import read_record
from gpt_jax.text import play
from gpt_jax.training import loop, objective, samples
from gpt_jax.training.step import mean_loss
from gpt_jax.training.stopping import (
    ALREADY_FINISHED,
    FINISHED,
    TIME_IS_UP,
    Stop,
    Stopped,
    Stopper,
    stopping_on_signals,
)


@pytest.fixture(autouse=True)
def shared_steps(monkeypatch):
    """Runs share their compiled steps."""
    share_steps(monkeypatch)


@pytest.fixture(scope="module")
def config(small, tmp_path_factory):
    """Ten steps on a small text, logged every second, evaluated and saved after 4, 8 and 10."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(play.write()[:4000], encoding="utf-8")
    config = small.with_values("model", vocab_size=0).with_values("data", corpus=str(path))
    config = config.with_values("train", log_every=2, eval_every=4, checkpoint_every=4)
    return config.with_values("sample", max_new_tokens=20, prompt="The ")


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A run that nobody stops."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        share_steps(patch)
        assert loop.train(config, workdir) == FINISHED
    return workdir


def record_and_samples(workdir):
    assert (workdir / "checkpoints" / "10").exists()
    return read_record(workdir), soak.samples(workdir)


def stop_in(monkeypatch, module, name, call, stopper):
    """Sends the stopper SIGTERM when `module.name` is called for the `call`-th time."""
    original, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            stopper.receive(signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, function)


@pytest.mark.parametrize(
    ("module", "name", "call", "saved", "sampled"),
    [
        (loop, "_wait", 3, 3, []),
        (loop, "_wait", 4, 4, []),
        (loop, "_wait", 10, 10, ["4", "8"]),
        (objective, "mean_loss", 1, 4, []),
        (samples, "stream", 1, 4, []),
        (samples, "stream", 3, 10, ["4", "8"]),
    ],
    ids=["between log lines", "at a save", "last step", "evaluation", "sample", "last sample"],
)
def test_a_stopped_run_saves_its_step_and_resumes_as_if_it_had_not_stopped(
    config, tmp_path, straight, monkeypatch, module, name, call, saved, sampled
):
    stopper, workdir = Stopper(), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_in(patch, module, name, call, stopper)
        assert loop.train(config, workdir, stopper=stopper) == Stop("SIGTERM", 143)
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == saved
    assert sorted(path.stem for path in (workdir / "samples").glob("*")) == sampled
    assert loop.train(config, workdir) == FINISHED
    assert log(workdir) == log(straight)
    assert record_and_samples(workdir) == record_and_samples(straight)
    assert (workdir / "loss.png").exists()
    assert loop.train(config, workdir) == ALREADY_FINISHED


def test_the_loss_of_an_abandoned_evaluation_can_be_the_best(config, tmp_path, monkeypatch):
    """The resumed run measures the loss of step 4, and no later loss is as small."""
    stopper, workdir = Stopper(), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_in(patch, objective, "mean_loss", 1, stopper)
        loop.train(config, workdir, stopper=stopper)
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(objective, "mean_loss", lambda *args: next(losses))
    assert loop.train(config, workdir) == FINISHED
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.all() == [Saved(4, 1.0), Saved(10, 3.0)]


# Sends itself a signal during the third step and, if `twice`, a second one while it saves.
SIGNALLED = """
import os, signal, sys, train
from gpt_jax.training import loop
from gpt_jax.runs.checkpoints import Checkpoints
wait, calls = loop._wait, []
def wait_and_signal(metrics):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.{name})
    wait(metrics)
loop._wait = wait_and_signal
save = Checkpoints.save
def save_slowly(self, step, *rest):
    self.wait()
    if {twice} and calls[2:]:
        os.kill(os.getpid(), signal.{name})
    save(self, step, *rest)
Checkpoints.save = save_slowly
sys.exit(train.main(sys.argv))
"""


@pytest.mark.parametrize(
    ("name", "twice", "status", "steps"),
    [("SIGTERM", False, 143, {"2", "3"}), ("SIGINT", True, 130, {"2"})],
)
def test_a_signal_saves_and_exits_and_a_second_one_exits_at_once(
    config, tmp_path, name, twice, status, steps
):
    flags = {
        **{"model.block_size": 16, "model.n_layer": 1, "model.n_embd": 16},
        **{"data.corpus": config.data.corpus, "optimizer.warmup_steps": 2, "train.steps": 10},
        **{"train.checkpoint_every": 2, "train.eval_every": 2, "mesh.cpu_devices": 1},
    }
    done = subprocess.run(
        [
            *(sys.executable, "-c", SIGNALLED.format(name=name, twice=twice)),
            f"--workdir={tmp_path / 'run'}",
            *(f"--config.{field}={value}" for field, value in flags.items()),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")},
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    told = f"stopped by {name} after step {max(steps)}: the same command resumes the run"
    assert (told in done.stderr) != twice
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {step for step in saved if step.isdecimal()} <= steps
    with Checkpoints.for_reading(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == int(max(steps))


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_remembered_until_the_run_asks_and_handlers_are_restored(signum):
    before = [signal.getsignal(each) for each in SIGNALS]
    with stopping_on_signals() as stopper:
        stopper.check()
        signal.raise_signal(signum)
        assert stopper.signum == signum
        assert stopper.poll() == Stop(signum.name, 128 + signum)
        with pytest.raises(Stopped, match=signum.name):
            stopper.check()
    assert before == [signal.getsignal(each) for each in SIGNALS]


def test_when_the_time_is_up_a_run_saves_its_step_and_the_same_command_resumes_it(
    config, tmp_path, straight
):
    """Each look at the clock takes a minute. The first starts it; each step looks once."""
    minutes = iter(range(0, 6000, 60))
    limited = config.with_values("train", max_minutes=3)
    stopper, workdir = Stopper(now=lambda: next(minutes)), tmp_path / "run"
    stop = loop.train(limited, workdir, stopper=stopper)
    assert (stop, stop.status, stop.step) == (TIME_IS_UP, 0, 3)
    assert stop.is_resumable
    assert loop.train(limited, workdir) == FINISHED
    assert log(workdir) == log(straight)
    assert soak.samples(workdir) == soak.samples(straight)


def test_a_run_with_little_time_makes_a_step_and_ends_its_evaluation(config, tmp_path):
    """It has no time left when it begins. Otherwise it would never end."""
    limited, workdir = config.with_values("train", max_minutes=1e-9), tmp_path / "run"
    stops = [loop.train(limited, workdir) for _ in range(11)]
    assert [stop.step for stop in stops[:-1]] == [*range(1, 11)]
    assert stops[-1] == FINISHED
    assert sorted(soak.samples(workdir)) == ["10.txt", "4.txt", "8.txt"]


@pytest.mark.parametrize(("minutes", "seconds", "is_up"), [(2, 119, False), (2, 120, True)])
def test_the_time_is_up_after_so_many_minutes(minutes, seconds, is_up):
    moments = iter([1000, 1000 + seconds])
    stopper = Stopper(now=lambda: next(moments))
    stopper.limit(minutes)
    assert stopper.poll() == (TIME_IS_UP if is_up else None)


def test_without_a_limit_the_time_is_never_up():
    moments = iter([0, 1e12])
    stopper = Stopper(now=lambda: next(moments))
    stopper.limit(0)
    assert stopper.poll() is None


def test_a_signal_counts_for_more_than_the_time():
    stopper = Stopper()
    stopper.limit(1e-9)
    stopper.receive(signal.SIGTERM)
    assert stopper.poll() == Stop("SIGTERM", 143)


@pytest.mark.parametrize("signum", SIGNALS)
def test_of_several_processes_a_signal_to_one_counts_for_more_than_the_time_of_another(signum):
    """Each gets what the other has. Only the first has no time left."""
    numbers = []

    def agree(number):
        numbers.append(number)
        return max(numbers)

    late, signalled = Stopper(agree), Stopper(agree)
    late.limit(1e-9)
    assert late.poll() == signalled.poll() == TIME_IS_UP
    signalled.receive(signum)
    assert signalled.poll() == late.poll() == Stop(signum.name, 128 + signum)


def test_nohup_keeps_its_meaning():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals() as stopper:
            signal.raise_signal(signal.SIGHUP)
            assert stopper.poll() is None
    finally:
        signal.signal(signal.SIGHUP, before)


# Opening the terminal by its name makes it the one whose closing sends SIGHUP.
IN_A_TERMINAL = """
import os, sys, train
os.open(os.ttyname(0), os.O_RDWR)
sys.exit(train.main(sys.argv))
"""


def test_a_closed_terminal_stops_the_run_after_a_save(config, tmp_path):
    run = tmp_path / "run"
    flags = {
        **{"model.block_size": 16, "model.n_layer": 1, "model.n_embd": 16},
        **{"data.corpus": config.data.corpus, "train.steps": 1_000_000, "train.eval_every": 50},
        **{"train.checkpoint_every": 1_000_000, "mesh.cpu_devices": 1, "train.log_every": 1},
    }
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, f"--workdir={run}"]
        + [f"--config.{field}={value}" for field, value in flags.items()],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True},
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"},
    )
    os.close(theirs)
    shown = b""
    while not re.search(rb"\b50  +\d\.", shown):  # The row of the first evaluation.
        shown += os.read(ours, 10_000)
        assert len(shown) < 100_000, shown
    os.close(ours)
    assert process.wait(timeout=120) == 129
    with Checkpoints.for_reading(run / "checkpoints") as checkpoints:
        assert checkpoints.latest_step >= 50


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_second_signal_shows_the_cursor_again():
    code = (
        "from gpt_jax.training.stopping import Stopper; s = Stopper(); s.receive(2); s.receive(2)"
    )
    ours, theirs = os.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, cwd=ROOT, timeout=60)
    assert done.returncode == 130
    assert os.read(ours, 100) == b"\x1b[?25h"
    os.close(ours)
    os.close(theirs)


def test_an_evaluation_asks_before_its_first_batch(small):
    def stop():
        raise Stopped(Stop("SIGTERM", 143))

    mesh = make_mesh(small.mesh, start_devices(small.mesh, small.train.batch_size))
    with pytest.raises(Stopped):
        mean_loss(None, None, np.zeros((20, 17)), make_batch_layout(small, mesh), stop)
