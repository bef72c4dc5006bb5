"""Several processes on this machine, over loopback: one run, whatever happens to one of them.

A process joins the others once, so each test starts its own. They stop and kill themselves in the
middle of a given step: nothing depends on who is how fast.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from soak import arrays, log, sample, saved
from support import ROOT

from gpt_jax.config.config import Config
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.runs.digest import digests
from gpt_jax.text import play
from gpt_jax.training.state import abstract_state, init_state

GLOO = "Gloo Rank is connected to peer ranks Expected number of"
WORKER = Path(__file__).with_name("process.py")
LONGEST_S = 300  # Machines differ; all of them are over in a small part of it.
SETTINGS = {
    **{"model.block_size": 16, "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16},
    **{"model.dropout": 0.25, "model.matmul_dtype": "float32", "optimizer.warmup_steps": 2},
    **{"train.steps": 10, "train.batch_size": 8, "train.microbatch_size": 2},
    **{"train.log_every": 1, "train.eval_every": 5, "train.checkpoint_every": 4},
    **{"sample.max_new_tokens": 5, "mesh.cpu_devices": 2, "mesh.tensor": 2},
}

# Sends itself a signal in the middle of a step.
SIGNALLED = """
import os, signal, sys, train
from gpt_jax.training import loop
wait, calls = loop._wait, []
def wait_and_signal(metrics):
    calls.append(1)
    if len(calls) == {step}:
        os.kill(os.getpid(), signal.{name})
    wait(metrics)
loop._wait = wait_and_signal
sys.exit(train.main(sys.argv))
"""


def free_port():
    """Below those that systems give to outgoing connections: none of these takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(16_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def run_all(commands, folder):
    """Runs commands at the same time. Returns their exit statuses and what each has told."""
    logs = [folder / f"process-{number}.log" for number in range(len(commands))]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    processes = []
    try:
        for command, path in zip(commands, logs, strict=True):
            with path.open("w") as file:
                processes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, env=environment)
                )
        statuses = [process.wait(LONGEST_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        told = [path.read_text() for path in logs]
        for number, text in enumerate(told):  # pytest shows it where a test fails.
            print(f"--- process {number}\n{text}")
    return statuses, told


def flags_of(workdir, **changes):
    settings = SETTINGS | {"data.corpus": workdir.parent / "corpus.txt"} | changes
    return [f"--workdir={workdir}", *(f"--config.{name}={it}" for name, it in settings.items())]


def train_together(workdir, hooks=None, each=lambda number: [], count=2, **changes):
    """scripts/train.py in `count` processes; `hooks`: what one runs in its place; `each`: its
    flags."""
    port, commands = free_port(), []
    for number in range(count):
        hook = (hooks or {}).get(number)
        program = ["-c", hook] if hook else [str(ROOT / "scripts" / "train.py")]
        cluster = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        cluster.append(f"--process_id={number}")
        command = [sys.executable, *program, "--distributed", *cluster]
        commands.append([*command, *flags_of(workdir, **changes), *each(number)])
    return run_all(commands, workdir.parent)


def train_alone(workdir, **changes):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags_of(workdir, **changes)]
    [status], [told] = run_all([command], workdir.parent)
    assert status == 0, told


def check_same(one, other):
    assert log(one) == log(other)
    assert [entry["step"] for entry in log(one)] == list(range(1, 11))
    assert arrays(one) == arrays(other)
    assert sample(one) == sample(other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    (path / "corpus.txt").write_text(play.write()[:20_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(folder):
    """A run of two processes with two devices each that nobody disturbs."""
    statuses, told = train_together(folder / "straight")
    assert statuses == [0, 0]
    assert "10 of 8 x 16" in told[0]
    assert "4 x cpu" in told[0]
    # Process 1 says nothing; Gloo does, from several threads, so that its lines are mixed.
    assert set(re.findall("[A-Za-z]+", told[1])) <= set(GLOO.split())
    return folder / "straight"


@pytest.fixture(scope="module")
def stopped(folder):
    """A run of which process 1 alone got SIGTERM in its third step."""
    hooks = {1: SIGNALLED.format(step=3, name="SIGTERM")}
    statuses, told = train_together(folder / "stopped", hooks)
    assert statuses == [143, 143]
    for text in told:
        assert "stopped by SIGTERM: the same command resumes the run" in text
        assert "Traceback" not in text
    assert saved(folder / "stopped") == [3]
    return folder / "stopped"


def test_two_processes_are_one_with_as_many_devices_bit_for_bit(folder, straight):
    """Without --distributed where every sum is of two numbers: more have another order there."""
    train_alone(folder / "alone", **{"mesh.cpu_devices": 4})
    check_same(folder / "alone", straight)
    record = json.loads((straight / "config.json").read_text())
    assert record["devices"]["count"] == 4
    assert record["config"]["mesh"]["cpu_devices"] == 2


def test_any_number_of_distributed_processes_is_the_same_bit_for_bit(folder):
    """Also where four numbers are summed."""
    mesh = {"mesh.tensor": 1, "mesh.fsdp": 2}
    one, two = folder / "one process", folder / "two processes"
    assert train_together(one, count=1, **mesh, **{"mesh.cpu_devices": 4})[0] == [0]
    assert train_together(two, **mesh)[0] == [0, 0]
    check_same(one, two)


def test_a_signal_to_one_process_stops_all_after_the_same_step(stopped, straight):
    resumed = stopped.with_name("resumed")
    shutil.copytree(stopped, resumed)
    statuses, told = train_together(resumed)
    assert statuses == [0, 0]
    assert re.search("resumes +after step 3", told[0])
    check_same(resumed, straight)


def test_one_process_with_one_device_goes_on_with_the_run_of_two(stopped, straight):
    alone = stopped.with_name("resumed alone")
    shutil.copytree(stopped, alone)
    train_alone(alone, **{"mesh.cpu_devices": 1, "mesh.tensor": 1})
    check_close(alone, straight)


def test_two_processes_go_on_with_the_run_of_one(folder, straight):
    hook = SIGNALLED.format(step=3, name="SIGINT")
    one = {"mesh.cpu_devices": 1, "mesh.tensor": 1}
    command = [sys.executable, "-c", hook, *flags_of(folder / "grown", **one)]
    assert run_all([command], folder)[0] == [130]
    statuses, _ = train_together(folder / "grown", **{"mesh.tensor": 1, "mesh.fsdp": 2})
    assert statuses == [0, 0]
    check_close(folder / "grown", straight)


def check_close(one, other):
    """On another mesh the sums have another order."""
    for name in ("train/loss", "val/loss"):
        losses = [[entry[name] for entry in log(run) if name in entry] for run in (one, other)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert len(log(one)) == 10


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_all_go_on_from_the_checkpoint(
    folder, straight, victim
):
    workdir = folder / f"killed {victim}"
    hooks = {victim: SIGNALLED.format(step=7, name="SIGKILL")}
    statuses, told = train_together(workdir, hooks)
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    last = told[1 - victim].splitlines()[-1]
    assert last.startswith("error: ")
    assert "another process of the run died or cannot be reached" in last
    assert "the run resumes from its newest checkpoint" in last
    assert saved(workdir) == [4]
    statuses, told = train_together(workdir)
    assert statuses == [0, 0]
    assert re.search("resumes +after step 4", told[0])
    check_same(workdir, straight)


# Cannot write arrays any more when it saves step 8, as on a full disk; its log it still can.
FULL = """
import resource, sys, train
from gpt_jax.runs.checkpoints import Checkpoints
save = Checkpoints.save
def limit_and_save(self, step, *rest):
    if step == 8:
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
    save(self, step, *rest)
Checkpoints.save = limit_and_save
sys.exit(train.main(sys.argv))
"""


def test_a_save_that_fails_ends_all(folder):
    """Whether the others have saved their part nobody knows: the same commands go on."""
    workdir = folder / "full"
    both, mesh = {0: FULL, 1: FULL}, {"mesh.tensor": 1, "mesh.fsdp": 2}
    statuses, told = train_together(workdir, both, **mesh)
    assert statuses == [1, 1]
    assert "error: the checkpoint of step 8 was not saved (" in "".join(told)
    assert saved(workdir) == [4]


def test_each_process_holds_its_shards_reads_its_rows_and_agrees_with_the_other(small, tmp_path):
    config = small.with_values("mesh", cpu_devices=2, fsdp=4)
    port, plain = free_port(), json.dumps(config.to_dict())
    statuses, _ = run_all(
        [
            [sys.executable, str(WORKER), str(tmp_path), str(port), str(number), plain]
            for number in (0, 1)
        ],
        tmp_path,
    )
    assert statuses == [0, 0]
    told = [json.loads((tmp_path / f"told-{number}.json").read_text()) for number in (0, 1)]
    assert [one["rows"] for one in told] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for one in told:
        assert one["here"] == [[4, 64]] * 2
        assert one["whole"] == [16, 64]
        assert one["digests"] == digests_alone(config)
        assert one["greatest"] == 11
        assert one["first"] == [0, "text " * 2000]
        assert one["together"] == "only here"
        assert "the number is not the same in all processes" in one["same"]


def digests_alone(config: Config) -> dict[str, int]:
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    return digests(init_state(config, abstract_state(config, mesh)))


def test_processes_with_different_settings_are_refused_by_all(folder):
    seeds = {"each": lambda number: [f"--config.train.seed={number}"]}
    statuses, told = train_together(folder / "different", **seeds)
    assert statuses == [2, 2]
    for text in told:
        assert "error: what is to be trained is not the same in all processes" in text
        assert "Traceback" not in text
    assert not (folder / "different").exists()


def test_processes_with_different_devices_or_folders_are_refused_by_all(folder):
    devices = {"each": lambda number: [f"--config.mesh.cpu_devices={number + 1}"]}
    statuses, told = train_together(folder / "uneven", **devices)
    assert statuses == [2, 2]
    for text in told:
        assert "error: the processes have 1, 2 devices: give all the same" in text
    for name in ("one", "another"):  # Used before: a lock stays.
        (folder / name).mkdir()
        (folder / name / ".lock").write_text("{}")
    workdirs = {"each": lambda number: [f"--workdir={folder / ('one', 'another')[number]}"]}
    statuses, told = train_together(folder / "unused", **workdirs)
    assert statuses == [2, 2]
    for text in told:
        assert "it must be on a file system that they share" in text


def test_where_the_others_do_not_come_one_sentence_and_the_end(folder):
    """The second of two where nobody listens, and the first of two where nobody comes."""

    def each(number):
        return [f"--coordinator=127.0.0.1:{free_port()}", "--join_timeout=1"]

    statuses, told = train_together(folder / "nobody", each=each)
    assert statuses == [2, 2]
    for text in told:
        assert text.splitlines()[-1].startswith("error: the processes of the run did not meet at ")
        assert "within 1 s" in text
    assert not (folder / "nobody").exists()
