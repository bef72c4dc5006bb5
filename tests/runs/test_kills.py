"""Killed anywhere, again and again, a run goes on as if nothing had happened: bit for bit."""

import multiprocessing
import os
import re
import resource
import sys
import threading

import pytest
from soak import arrays, log, sample, saved

# A server that has loaded JAX, and not started it, and forks a process for every start of a run.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["gpt_jax.training", "ml_collections.config_flags", "pytest"])
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
LINES = 20


def run(workdir, text_file, arm=lambda: None):
    """What such a process does: train.py, dropout on, saved every second step of 20."""
    out = os.open(workdir.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    import train

    settings = {
        **{"model.block_size": 16, "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16},
        **{"model.dropout": 0.25, "data.corpus": text_file, "optimizer.warmup_steps": 2},
        **{"train.steps": LINES, "train.batch_size": 8, "train.log_every": 1},
        **{"train.eval_every": 10, "train.checkpoint_every": 2},
        **{"sample.max_new_tokens": 5, "mesh.cpu_devices": 1},
    }
    arm()
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    sys.exit(train.main(["train.py", f"--workdir={workdir}", *flags]))


class Killer:
    """Kills its process at the first point where none before it was killed."""

    def __init__(self, workdir):
        self.workdir, self.list = f"{workdir}/", workdir.with_suffix(".killed")
        self.known = points(workdir)
        self.removed = threading.local()  # Its folder: the folder this thread removes.

    def point(self, name, prepare=lambda: None):
        if name not in self.known:
            self.known.append(name)
            prepare()
            self.list.write_text("\n".join(self.known))
            os._exit(9)

    def change(self, event, args):
        """Before Python makes, renames or removes something of the run; right after it opens."""
        writes = event == "open" and set(args[1] or "") & set("wax+")
        if not writes and event not in CHANGES:
            return
        path = str(args[0])
        if not path.startswith(self.workdir):
            if event in ("os.remove", "os.rmdir") and not os.path.isabs(path):
                self.point(f"{event} {self.beneath(path)}")
        elif event != "os.remove":  # Orbax does so before it writes: nothing is there.
            if event == "shutil.rmtree":
                self.removed.folder = path
            name = f"{event} {numberless(path.removeprefix(self.workdir))}"
            self.point(name, lambda: event == "open" and open(*args[:2]).close())

    def beneath(self, name):
        """For what is removed in a folder: whether it holds arrays, and the kind of the folder."""
        what = "of arrays " if numberless(name) == "H" else ""
        return what + ("in an old one" if self.removed.folder[-1].isdecimal() else "in a torn one")


def numberless(path):
    """A path without what differs each time: steps, process ids, hashes."""
    return re.sub(r"\d+(?=$|/|\.)", "N", re.sub(r"\b[0-9a-f]{32}\b", "H", path))


def points(workdir):
    path = workdir.with_suffix(".killed")
    return path.read_text().splitlines() if path.exists() else []


def killed_at_changes(workdir, text_file):
    run(workdir, text_file, lambda: sys.addaudithook(Killer(workdir).change))


def killed_after_lines(workdir, text_file):
    def arm():
        from gpt_jax.training.monitor import Monitor

        killer, tell = Killer(workdir), Monitor.record

        def tell_and_die(self, step, *args):
            tell(self, step, *args)
            killer.point(f"line {step}")

        Monitor.record = tell_and_die

    run(workdir, text_file, arm)


def start(target, *args):
    """Runs a function in a process of its own. Returns its exit status."""
    process = FORKS.Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode


def output(workdir):
    return workdir.with_suffix(".out").read_text()


@pytest.fixture
def straight(tmp_path, text_file):
    """A run that nobody disturbs."""
    workdir = tmp_path / "straight"
    assert start(run, workdir, text_file) == 0, output(workdir)
    return workdir


def check_same(workdir, straight):
    assert arrays(workdir) == arrays(straight)
    assert log(workdir) == log(straight)
    assert [entry["step"] for entry in log(workdir)] == list(range(1, LINES + 1))
    assert sample(workdir) == sample(straight)


def kill_everywhere(target, workdir, text_file):
    """Kills the run at each of its points, once; no checkpoint is ever lost. Returns the points."""
    newest, status = 0, 9
    while status == 9:
        status = start(target, workdir, text_file)
        steps = saved(workdir)
        assert max(steps, default=0) >= newest, points(workdir)[-1]
        newest = max(steps, default=0)
    assert status == 0, output(workdir)
    assert "damaged" not in output(workdir)
    return points(workdir)


# Named as Orbax 0.12.8 does it; what else it does is found, too.
STAGES = [
    "os.mkdir checkpoints/N.orbax-checkpoint-tmp",
    "os.mkdir checkpoints/N.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp",
    "open checkpoints/N.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/_METADATA",
    "os.rename checkpoints/N.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp",
    "open checkpoints/N.orbax-checkpoint-tmp/commit_success.txt",
    "os.rename checkpoints/N.orbax-checkpoint-tmp",
    "shutil.rmtree checkpoints/N",
    "os.remove in an old one",
    "os.remove of arrays in an old one",
    "os.rmdir in an old one",
    "os.rmdir checkpoints/N",
    "shutil.rmtree checkpoints/N.orbax-checkpoint-tmp",
    "os.remove of arrays in a torn one",
    "os.rename samples/N.txt.N.part",
]


def test_a_run_killed_before_every_change_of_its_files_is_as_a_straight_one(
    tmp_path, text_file, straight
):
    found = kill_everywhere(killed_at_changes, tmp_path / "run", text_file)
    assert set(STAGES) <= set(found)
    check_same(tmp_path / "run", straight)


def test_a_run_killed_after_every_line_of_its_log_is_as_a_straight_one(
    tmp_path, text_file, straight
):
    found = kill_everywhere(killed_after_lines, tmp_path / "run", text_file)
    assert found == [f"line {number}" for number in range(1, LINES + 1)]
    check_same(tmp_path / "run", straight)


def on_a_full_disk(workdir, text_file):
    """No file can grow beyond 20,000 bytes once step 4 is saved: its arrays have more."""

    def arm():
        from gpt_jax.runs.checkpoints import Checkpoints

        save = Checkpoints.save

        def limit_and_save(self, step, *rest):
            if step == 6:
                self.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            save(self, step, *rest)

        Checkpoints.save = limit_and_save

    run(workdir, text_file, arm)


def test_on_a_full_disk_the_last_good_checkpoint_is_kept_and_the_run_ends_after_three(
    tmp_path, text_file, straight
):
    workdir = tmp_path / "run"
    assert start(on_a_full_disk, workdir, text_file) == 2
    told = output(workdir)
    for kind, step in (("note", 6), ("note", 8), ("error", 10)):  # Each for its own reason.
        pattern = (
            rf"{kind}: the checkpoint of step {step} was not saved \(.*/{step}\.orbax.*too large"
        )
        assert re.search(pattern, told, re.IGNORECASE), told
    assert "Traceback" not in told
    assert "3 in a row: check " in told
    assert "resumes from step 4" in told
    assert saved(workdir) == [4]
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    # A write of the last save that was still under way may have made its folder anew.
    assert {"4"} <= left <= {"4", "10.orbax-checkpoint-tmp"}
    assert len(log(workdir)) >= 10
    assert start(run, workdir, text_file) == 0
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    check_same(workdir, straight)
