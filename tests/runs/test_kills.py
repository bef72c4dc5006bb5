"""A run that is killed anywhere, again and again, ends with the same bits as one left alone."""

import os
import re
import resource
import sys
import threading

import pytest
from forks import run as start
from forks import write_output_to
from soak import arrays, log, samples, saved

from gpt_jax.text import play

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
STEPS = 8


def run(workdir, text_file, arm=lambda: None, checkpoint_every=2):
    """What each process does: train.py, with dropout and a line of the log after every step."""
    write_output_to(workdir.with_suffix(".out"))
    import train

    settings = {
        **{"model.block_size": 16, "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16},
        **{"model.dropout": 0.25, "data.corpus": text_file, "optimizer.warmup_steps": 2},
        **{"train.steps": STEPS, "train.batch_size": 8, "train.log_every": 1},
        **{"train.eval_every": 4, "train.checkpoint_every": checkpoint_every},
        **{"sample.max_new_tokens": 5, "mesh.cpu_devices": 1},
    }
    arm()
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    train.leave(train.main(["train.py", f"--workdir={workdir}", *flags]))


class Killer:
    """Kills its process at the first point where no process of the chain was killed before."""

    def __init__(self, workdir):
        self.workdir, self.list = f"{workdir}/", workdir.with_suffix(".killed")
        self.known = points(workdir)
        self.removed = threading.local()  # Its `folder` is the one that this thread removes.

    def point(self, name, prepare=lambda: None):
        if name not in self.known:
            self.known.append(name)
            prepare()
            self.list.write_text("\n".join(self.known))
            os._exit(9)

    def change(self, event, args):
        """Audit hook: before a file of the run is made, renamed or removed; right after an open."""
        writes = event == "open" and set(args[1] or "") & set("wax+")
        if not writes and event not in CHANGES:
            return
        path = str(args[0])
        if not path.startswith(self.workdir):
            if event in ("os.remove", "os.rmdir") and not os.path.isabs(path):
                self.point(f"{event} {self.beneath(path)}")
        elif event != "os.remove":  # Orbax removes before it writes, but there is nothing.
            if event == "shutil.rmtree":
                self.removed.folder = path
            name = f"{event} {numberless(path.removeprefix(self.workdir))}"
            self.point(name, lambda: event == "open" and open(*args[:2]).close())

    def beneath(self, name):
        """What is removed in a folder: arrays or other files, of which kind of checkpoint."""
        what = "of arrays " if numberless(name) == "H" else ""
        is_old = ".deleted." in self.removed.folder
        return what + ("in an old checkpoint" if is_old else "in an incomplete one")


def numberless(path):
    """A path without the parts that differ each time: steps, process ids and hashes."""
    return re.sub(r"\d+(?=$|/|\.)", "N", re.sub(r"\b[0-9a-f]{32}\b", "H", path))


def points(workdir):
    path = workdir.with_suffix(".killed")
    return path.read_text().splitlines() if path.exists() else []


def killed_at_changes(workdir, text_file):
    """Saves after every step, because each way to remove an old checkpoint needs one."""
    run(workdir, text_file, lambda: sys.addaudithook(Killer(workdir).change), checkpoint_every=1)


def killed_after_lines(workdir, text_file):
    def arm():
        from gpt_jax.training.monitor import Monitor

        killer, record = Killer(workdir), Monitor.record

        def record_and_die(self, step, *args):
            record(self, step, *args)
            killer.point(f"line {step}")

        Monitor.record = record_and_die

    run(workdir, text_file, arm)


def output(workdir):
    return workdir.with_suffix(".out").read_text()


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """A corpus of 20,000 characters."""
    path = tmp_path_factory.mktemp("kills") / "corpus.txt"
    path.write_text(play.write()[:20_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(text_file):
    """A run that is left alone."""
    workdir = text_file.with_name("straight")
    assert start(run, workdir, text_file) == 0, output(workdir)
    return workdir


def check_same(workdir, straight):
    assert arrays(workdir) == arrays(straight)
    assert log(workdir) == log(straight)
    assert [entry["step"] for entry in log(workdir)] == list(range(1, STEPS + 1))
    assert samples(workdir) == samples(straight)


def kill_everywhere(target, workdir, text_file):
    """Kills the run once at each of its points. Checks that no checkpoint is lost.

    Returns: the points.
    """
    newest, status = 0, 9
    while status == 9:
        status = start(target, workdir, text_file)
        steps = saved(workdir)
        assert max(steps, default=0) >= newest, points(workdir)[-1]
        newest = max(steps, default=0)
    assert status == 0, output(workdir)
    assert "damaged" not in output(workdir)
    return points(workdir)


# What Orbax 0.12.8 and the deletion of checkpoints do. The chain of kills finds other points, too.
STAGES = [
    "os.mkdir checkpoints/N.orbax-checkpoint-tmp",
    "os.mkdir checkpoints/N.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp",
    "open checkpoints/N.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/_METADATA",
    "os.rename checkpoints/N.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp",
    "open checkpoints/N.orbax-checkpoint-tmp/commit_success.txt",
    "os.rename checkpoints/N.orbax-checkpoint-tmp",
    "os.rename checkpoints/N",
    "shutil.rmtree checkpoints/N.deleted.orbax-checkpoint-tmp",
    "os.remove in an old checkpoint",
    "os.remove of arrays in an old checkpoint",
    "os.rmdir in an old checkpoint",
    "os.rmdir checkpoints/N.deleted.orbax-checkpoint-tmp",
    "shutil.rmtree checkpoints/N.orbax-checkpoint-tmp",
    "os.remove of arrays in an incomplete one",
    "os.rename samples/N.txt.N.part",
]


def test_a_run_killed_before_every_change_of_its_files_ends_with_the_same_bits(
    tmp_path, text_file, straight
):
    found = kill_everywhere(killed_at_changes, tmp_path / "run", text_file)
    assert set(STAGES) <= set(found)
    check_same(tmp_path / "run", straight)


def test_a_run_killed_after_every_line_of_its_log_ends_with_the_same_bits(
    tmp_path, text_file, straight
):
    found = kill_everywhere(killed_after_lines, tmp_path / "run", text_file)
    assert found == [f"line {number}" for number in range(1, STEPS + 1)]
    check_same(tmp_path / "run", straight)


def on_a_full_disk(workdir, text_file):
    """No file can grow beyond 20,000 bytes once step 2 is saved. The arrays are larger."""

    def arm():
        from gpt_jax.runs.checkpoints import Checkpoints

        save = Checkpoints.save

        def limit_and_save(self, step, *rest):
            if step == 4:
                self.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            save(self, step, *rest)

        Checkpoints.save = limit_and_save

    run(workdir, text_file, arm)


def test_on_a_full_disk_the_last_checkpoint_stays_and_the_third_failed_save_ends_the_run(
    tmp_path, text_file, straight
):
    workdir = tmp_path / "run"
    assert start(on_a_full_disk, workdir, text_file) == 2
    printed = output(workdir)
    for kind, step in (("note", 4), ("note", 6), ("error", 8)):  # Each names its own files.
        pattern = (
            rf"{kind}: the checkpoint of step {step} was not saved \(.*/{step}\.orbax.*too large"
        )
        assert re.search(pattern, printed, re.IGNORECASE), printed
    assert "Traceback" not in printed
    assert "3 in a row: check " in printed
    assert "resumes from step 2" in printed
    assert saved(workdir) == [2]
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    # A write of a failed save that was still under way may have made the save's folder again.
    assert "2" in left
    assert {name.partition(".")[2] for name in left - {"2"}} <= {"orbax-checkpoint-tmp"}, left
    assert len(log(workdir)) == STEPS
    assert start(run, workdir, text_file) == 0
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    check_same(workdir, straight)
