"""Asked to end, a run saves the step in hand and goes on later as if nothing had happened."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from soak import log
from support import ROOT

from gpt_jax.devices.batch_layout import make_batch_layout
from gpt_jax.devices.device_count import start_devices
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.runs.checkpoint_list import Saved
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import read_record
from gpt_jax.sampling import decode
from gpt_jax.training import loop
from gpt_jax.training import run as run_module
from gpt_jax.training.step import mean_loss
from gpt_jax.training.stopping import FINISHED, Stop, Stopped, Stopper, stopping_on_signals


@pytest.fixture
def config(small, text_file):
    """Ten steps on a small text, logged every second, evaluated and saved after 4, 8 and 10."""
    config = small.with_values("model", vocab_size=0).with_values("data", corpus=str(text_file))
    config = config.with_values("train", log_every=2, eval_every=4, checkpoint_every=4)
    return config.with_values("sample", max_new_tokens=20, prompt="The ")


@pytest.fixture
def straight(config, tmp_path):
    loop.train(config, tmp_path / "straight")
    return tmp_path / "straight"


def params(workdir):
    path = workdir / "checkpoints" / "10"
    assert path.exists()
    return read_record(workdir), (workdir / "samples" / "10.txt").read_text()


def ask_at(monkeypatch, module, name, call, asked):
    """The signal comes in the middle of a call of a function."""
    original, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            asked.signum = signal.SIGTERM
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, function)


@pytest.mark.parametrize(
    ("module", "name", "call", "saved"),
    [
        (loop, "_wait", 3, 3),
        (loop, "_wait", 4, 4),
        (loop, "_wait", 10, 10),
        (run_module, "mean_loss", 1, 4),
        (decode, "extend", 1, 10),
    ],
)
def test_the_step_in_hand_is_saved_and_the_rest_is_as_in_a_straight_run(
    config, tmp_path, straight, monkeypatch, module, name, call, saved
):
    module_of_run = run_module if name == "mean_loss" else module
    asked, workdir = Stopper(), tmp_path / "run"
    with monkeypatch.context() as patch:
        ask_at(patch, module_of_run, name, call, asked)
        assert loop.train(config, workdir, stopper=asked) == Stop("SIGTERM", 143)
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == saved
    assert not (workdir / "samples").exists()
    assert loop.train(config, workdir) == FINISHED
    assert log(workdir) == log(straight)
    assert params(workdir) == params(straight)


def test_an_evaluation_that_was_left_alone_still_finds_the_best(config, tmp_path, monkeypatch):
    """The loss of step 4 is measured after the run has gone on, and no later one is as small."""
    asked, workdir = Stopper(), tmp_path / "run"
    with monkeypatch.context() as patch:
        ask_at(patch, run_module, "mean_loss", 1, asked)
        loop.train(config, workdir, stopper=asked)
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(run_module, "mean_loss", lambda *args: next(losses))
    assert loop.train(config, workdir) == FINISHED
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.all() == [Saved(4, 1.0), Saved(10, 3.0)]


# Sends itself a signal in the middle of the third step, and a second one while it saves.
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
def test_signals_to_a_process(text_file, tmp_path, name, twice, status, steps):
    flags = {
        **{"model.block_size": 16, "model.n_layer": 1, "model.n_embd": 16},
        **{"data.corpus": text_file, "optimizer.warmup_steps": 2, "train.steps": 10},
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
    assert ("the same command goes on where it was" in done.stderr) != twice
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {step for step in saved if step.isdecimal()} <= steps
    with Checkpoints.for_reading(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == int(max(steps))


def test_a_signal_is_kept_until_it_is_asked_for():
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with stopping_on_signals() as asked:
        asked.check()
        signal.raise_signal(signal.SIGINT)
        assert asked.signum == signal.SIGINT
        with pytest.raises(Stopped, match="SIGINT"):
            asked.check()
    assert before == [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]


def test_an_evaluation_asks_before_every_batch(small):
    def stop():
        raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        mean_loss(None, None, np.zeros((20, 17)), layout_of(small), stop)


def layout_of(config):
    devices = start_devices(config.mesh, config.train.batch_size)
    return make_batch_layout(config, make_mesh(config.mesh, devices[: len(jax.devices())]))
