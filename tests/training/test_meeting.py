"""Several processes on this machine train one run, over loopback, whatever happens to one of them.

A process can join the others only once, so each test starts its own. Processes stop and kill
themselves in the middle of a given step, so no test depends on their speed.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
from functools import partial

import forks
import jax
import numpy as np
import pytest
from process import examine
from soak import arrays, log, samples, saved

from gpt_jax.config.config import Config
from gpt_jax.devices.mesh import make_mesh
from gpt_jax.runs.digest import digests
from gpt_jax.text import play
from gpt_jax.training.state import abstract_state, init_state

GLOO = "Gloo Rank is connected to peer ranks Expected number of"
LONGEST_S = 300  # No process should take a tenth of it.
SETTINGS = {
    **{"model.block_size": 16, "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16},
    **{"model.dropout": 0.25, "model.matmul_dtype": "float32", "optimizer.warmup_steps": 2},
    **{"train.steps": 10, "train.batch_size": 8, "train.microbatch_size": 2},
    **{"train.log_every": 1, "train.eval_every": 5, "train.checkpoint_every": 4},
    # Characters would add the tutorial's estimate: 200 batches, slow over Gloo.
    **{"data.tokenizer": "byte", "sample.max_new_tokens": 5},
    **{"mesh.cpu_devices": 2, "mesh.tensor": 2},
}


def train(argv, path, hook=None):
    """What each process does: train.py, with its output in a file. `hook` is called first."""
    forks.write_output_to(path)
    import train as script

    if hook:
        hook()
    sys.exit(script.main(["train.py", *argv]))


def signalled(signum, step):
    """The process sends itself a signal in the middle of a step, counted from its first."""
    from gpt_jax.training import loop

    wait, calls = loop._wait, []

    def wait_and_signal(metrics):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signum)
        wait(metrics)

    loop._wait = wait_and_signal


def on_a_full_disk():
    """The process cannot write arrays when it saves step 8, but it can write its log."""
    from gpt_jax.runs.checkpoints import Checkpoints

    save = Checkpoints.save

    def limit_and_save(self, step, *rest):
        if step == 8:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
        save(self, step, *rest)

    Checkpoints.save = limit_and_save


def free_port():
    """A port below those of outgoing connections, so that none of these takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(16_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def run_all(target, arguments, folder):
    """Runs a function in several processes at once.

    Args:
      arguments: of each process; the path of its output is put behind the first.

    Returns: their exit statuses and what each has printed.
    """
    logs = [folder / f"process-{number}.log" for number in range(len(arguments))]
    processes = []
    try:
        for (first, *rest), path in zip(arguments, logs, strict=True):
            path.write_text("")
            processes.append(forks.start(target, first, path, *rest))
        for process in processes:
            process.join(LONGEST_S)
        statuses = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
        printed = [path.read_text() for path in logs]
        for number, text in enumerate(printed):  # pytest shows it if a test fails.
            print(f"--- process {number}\n{text}")
    return statuses, printed


def flags_of(workdir, **changes):
    settings = SETTINGS | {"data.corpus": workdir.parent / "corpus.txt"} | changes
    return [f"--workdir={workdir}", *(f"--config.{name}={it}" for name, it in settings.items())]


def train_together(workdir, hooks=None, each=lambda number: [], count=2, **changes):
    """Runs train.py in `count` processes.

    Args:
      hooks: by the number of the process; each is called before the script.
      each: the flags of one process, from its number.
      changes: settings of all.

    Returns: their exit statuses and what each has printed.
    """
    port, arguments = free_port(), []
    for number in range(count):
        cluster = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        argv = ["--distributed", *cluster, f"--process_id={number}"]
        argv += [*flags_of(workdir, **changes), *each(number)]
        arguments.append((argv, (hooks or {}).get(number)))
    return run_all(train, arguments, workdir.parent)


def train_alone(workdir, hook=None, expected=0, **changes):
    """Runs train.py in one process, without --distributed."""
    [status], [printed] = run_all(train, [(flags_of(workdir, **changes), hook)], workdir.parent)
    assert status == expected, printed


def check_same(one, other):
    assert log(one) == log(other)
    assert [entry["step"] for entry in log(one)] == list(range(1, 11))
    assert arrays(one) == arrays(other)
    assert samples(one) == samples(other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    (path / "corpus.txt").write_text(play.write()[:6_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(folder):
    """A run of two processes with two devices each that is left alone."""
    statuses, printed = train_together(folder / "straight")
    assert statuses == [0, 0]
    assert "10 of 8 x 16" in printed[0]
    assert "4 x cpu" in printed[0]
    # Process 1 prints nothing. Gloo does, from several threads, so its lines may be mixed.
    assert set(re.findall("[A-Za-z]+", printed[1])) <= set(GLOO.split())
    return folder / "straight"


@pytest.fixture(scope="module")
def stopped(folder):
    """A run in which only process 1 got SIGTERM, in the third step."""
    hooks = {1: partial(signalled, signal.SIGTERM, 3)}
    statuses, printed = train_together(folder / "stopped", hooks)
    assert statuses == [143, 143]
    for text in printed:
        assert "stopped by SIGTERM after step 3: the same command resumes the run" in text
        assert "Traceback" not in text
    assert saved(folder / "stopped") == [3]
    return folder / "stopped"


def test_two_processes_equal_one_with_as_many_devices_bit_for_bit(folder, straight):
    """One without --distributed. There, sums of more than two numbers have another order."""
    train_alone(folder / "alone", **{"mesh.cpu_devices": 4})
    check_same(folder / "alone", straight)
    record = json.loads((straight / "config.json").read_text())
    assert record["devices"]["count"] == 4
    assert record["config"]["mesh"]["cpu_devices"] == 2


def test_a_signal_to_one_process_stops_all_after_the_same_step(stopped, straight):
    resumed = stopped.with_name("resumed")
    shutil.copytree(stopped, resumed)
    statuses, printed = train_together(resumed)
    assert statuses == [0, 0]
    assert re.search("resumes +after step 3", printed[0])
    check_same(resumed, straight)


def without_time():
    """The process has no time left when it begins."""
    from gpt_jax.training.stopping import Stopper

    limit = Stopper.limit
    Stopper.limit = lambda self, minutes: limit(self, 1e-9)


def without_progress():
    """The process finds no lower loss after the first, which another process does not know."""
    from gpt_jax.training.log import MetricsLog

    append = MetricsLog.append

    def append_and_change(self, entry):
        append(self, entry)
        self.losses = dict.fromkeys(self.losses, 1.0)

    MetricsLog.append = append_and_change


def test_all_processes_end_together_if_one_has_no_time_or_no_patience_left(folder):
    """First process 1 has no time left; then process 0, whose log counts, has no patience left."""
    workdir = folder / "limited"
    statuses, printed = train_together(workdir, {1: without_time})
    assert statuses == [0, 0]
    for text in printed:
        assert "stopped by train.max_minutes after step 1: the same command resumes" in text
    assert saved(workdir) == [1]
    impatient = {"train.patience": 1, "train.eval_every": 2}
    allowed = ["--resume_allow=train.patience"]
    hooks = {0: without_progress}
    statuses, printed = train_together(workdir, hooks, lambda number: allowed, **impatient)
    assert statuses == [0, 0]
    assert "ended     after step 4 of 10" in printed[0]
    assert [entry["step"] for entry in log(workdir)] == [1, 2, 3, 4]
    assert sorted(samples(workdir)) == ["2.txt", "4.txt"]


def test_all_processes_resume_from_the_checkpoint_before_a_damaged_one(stopped, straight):
    """Their newest checkpoint is that of step 3. A copy of it is the newer, damaged one."""
    damaged = stopped.with_name("damaged")
    shutil.copytree(stopped, damaged)
    newest = damaged / "checkpoints" / "7"
    shutil.copytree(damaged / "checkpoints" / "3", newest)
    for path in newest.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    statuses, printed = train_together(damaged)
    assert statuses == [0, 0]
    assert "/7 cannot be restored (" in printed[0]
    assert "set aside as damaged-7" in printed[0]
    assert "Traceback" not in "".join(printed)
    assert re.search("resumes +after step 3", printed[0])
    check_same(damaged, straight)


def test_one_process_with_one_device_resumes_the_run_of_two(stopped, straight):
    alone = stopped.with_name("resumed alone")
    shutil.copytree(stopped, alone)
    train_alone(alone, **{"mesh.cpu_devices": 1, "mesh.tensor": 1})
    check_close(alone, straight)


def test_two_processes_resume_the_run_of_one(folder, straight):
    one = {"mesh.cpu_devices": 1, "mesh.tensor": 1}
    train_alone(folder / "grown", partial(signalled, signal.SIGINT, 3), 130, **one)
    statuses, _ = train_together(folder / "grown", **{"mesh.tensor": 1, "mesh.fsdp": 2})
    assert statuses == [0, 0]
    check_close(folder / "grown", straight)


def check_close(one, other):
    """Compares losses, because sums have another order on another mesh."""
    for name in ("train/loss", "val/loss"):
        losses = [[entry[name] for entry in log(run) if name in entry] for run in (one, other)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert len(log(one)) == 10


def test_a_killed_process_ends_the_others_and_all_resume_from_the_checkpoint(folder):
    """It equals the run of one distributed process bit for bit, though sums have four terms."""
    mesh = {"mesh.tensor": 1, "mesh.fsdp": 2}
    one, killed = folder / "one process", folder / "killed"
    assert train_together(one, count=1, **mesh, **{"mesh.cpu_devices": 4})[0] == [0]
    kill_one(killed, 0, partial(signalled, signal.SIGKILL, 7), **mesh)
    kill_one(killed, 1, partial(signalled, signal.SIGKILL, 3), **mesh)  # Resumed after step 4.
    statuses, printed = train_together(killed, **mesh)
    assert statuses == [0, 0]
    assert re.search("resumes +after step 4", printed[0])
    check_same(killed, one)


def kill_one(workdir, victim, hook, **mesh):
    """Kills one of two processes in step 7."""
    statuses, printed = train_together(workdir, {victim: hook}, **mesh)
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    last = printed[1 - victim].splitlines()[-1]
    assert last.startswith("error: ")
    assert "another process of the run died or cannot be reached" in last
    assert "the run resumes from its newest checkpoint" in last
    assert saved(workdir) == [4]


def test_a_save_that_fails_ends_all(folder):
    """No process knows whether the others have saved their parts."""
    workdir = folder / "full"
    both, mesh = dict.fromkeys((0, 1), on_a_full_disk), {"mesh.tensor": 1, "mesh.fsdp": 2}
    statuses, printed = train_together(workdir, both, **mesh)
    assert statuses == [1, 1]
    assert "error: the checkpoint of step 8 was not saved (" in "".join(printed)
    assert saved(workdir) == [4]


def test_each_process_holds_its_shards_reads_its_rows_and_agrees_with_the_other(small, folder):
    config = small.with_values("mesh", cpu_devices=2, fsdp=4)
    for name in ("one", "another"):  # Runs that were here before: their locks stay.
        (folder / name).mkdir()
        (folder / name / ".lock").write_text("{}")
    port = free_port()
    statuses, _ = run_all(examine, [(number, folder, port, config) for number in (0, 1)], folder)
    assert statuses == [0, 0]
    found = [json.loads((folder / f"found-{number}.json").read_text()) for number in (0, 1)]
    assert [one["rows"] for one in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for one in found:
        assert one["here"] == [[4, 64]] * 2
        assert one["whole"] == [16, 64]
        assert one["digests"] == digests_alone(config)
        assert one["greatest"] == 11
        assert one["first"] == [0, "text " * 2000]
        assert one["together"] == "only here"
        assert "the number differs between the processes" in one["same"]
        assert "it must be on a file system that they share" in one["folder"]


def digests_alone(config: Config) -> dict[str, int]:
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    return digests(init_state(config, abstract_state(config, mesh)))


def test_processes_with_different_settings_are_refused_by_all(folder):
    seeds = {"each": lambda number: [f"--config.train.seed={number}"]}
    statuses, printed = train_together(folder / "different", **seeds)
    assert statuses == [2, 2]
    for text in printed:
        assert "error: what is to be trained differs between the processes of the run" in text
        assert "Traceback" not in text
    assert not (folder / "different").exists()


def test_processes_with_different_devices_are_refused_by_all(folder):
    devices = {"each": lambda number: [f"--config.mesh.cpu_devices={number + 1}"]}
    statuses, printed = train_together(folder / "uneven", **devices)
    assert statuses == [2, 2]
    for text in printed:
        assert "error: the processes have 1, 2 devices: give all the same" in text


def test_if_the_others_do_not_arrive_each_exits_with_one_sentence(folder):
    """The second of two finds nobody at its address; the first of two waits for nobody."""

    def each(number):
        return [f"--coordinator=127.0.0.1:{free_port()}", "--join_timeout=1"]

    statuses, printed = train_together(folder / "nobody", each=each)
    assert statuses == [2, 2]
    for text in printed:
        assert text.splitlines()[-1].startswith("error: the processes of the run did not meet at ")
        assert "within 1 s" in text
    assert not (folder / "nobody").exists()
