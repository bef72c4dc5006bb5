"""One writer per run: a second one is refused; the lock is free when its holder ends."""

import os
import re
import subprocess
import sys

import pytest

from gpt_jax.errors import UserError
from gpt_jax.runs import lock
from gpt_jax.runs.lock import one_writer

HOLD = """
import sys, time
from pathlib import Path
from gpt_jax.runs import one_writer
with one_writer(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "config.json").write_text("{}")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_and_the_error_names_the_first(tmp_path, holder):
    expected = rf"run is in use by process {holder.pid} on .+, started \d{{4}}-\d\d-\d\d"
    expected += ".*: wait for it, stop it, or use another folder"  # Not every script has --workdir.
    with pytest.raises(UserError, match=expected), one_writer(tmp_path / "run"):
        raise AssertionError("two writers")


def test_the_lock_is_free_when_its_holder_is_killed(tmp_path, holder):
    holder.kill()
    holder.wait()
    with one_writer(tmp_path / "run"):
        pass


def test_a_second_training_run_is_refused_before_jax_is_loaded(
    tmp_path, holder, monkeypatch, capsys
):
    import train

    monkeypatch.setattr(train, "train", None)
    assert train.main(["train.py", f"--workdir={tmp_path / 'run'}"]) == 2
    assert re.match(r"error: .*run is in use by process \d+", capsys.readouterr().err)


def test_the_folder_is_removed_only_if_it_stays_empty(tmp_path):
    with one_writer(tmp_path / "new"):
        assert (tmp_path / "new" / ".lock").exists()
    assert not (tmp_path / "new").exists()
    with one_writer(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert (tmp_path / "run" / "config.json").exists()


def test_a_lock_file_removed_before_it_is_locked_does_not_count(tmp_path, monkeypatch):
    flock = lock.fcntl.flock

    def remove_and_lock(file, how):
        os.unlink(file.name)
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", remove_and_lock)
    with pytest.raises(UserError, match="in use by another process"), one_writer(tmp_path / "run"):
        raise AssertionError("locked a file that no other process sees")


def test_a_platform_without_file_locks_gets_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "fcntl", None)
    with one_writer(tmp_path / "run"):
        pass
    assert capsys.readouterr().err.count("note: this platform has no file locks") == 1


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/run", "file/runs/run"):
        with pytest.raises(UserError, match="file is not a folder"), one_writer(tmp_path / name):
            raise AssertionError("no folder")


def test_a_pipe_in_place_of_the_lock_file_is_an_error_at_once(tmp_path, mkfifo):
    mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match=r"\.lock is a pipe, not a file"), one_writer(tmp_path):
        raise AssertionError("locked a pipe")


def test_a_lock_file_that_is_a_link_is_refused(tmp_path):
    """Otherwise somebody else's run could make us overwrite any file."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(outside)
    with (
        pytest.raises(UserError, match=r"\.lock is a link: remove it"),
        one_writer(tmp_path / "run"),
    ):
        pass
    assert outside.read_text() == "precious"


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """The last holder removes the file before it frees it; a third process makes a new one."""
    flock, path = lock.fcntl.flock, tmp_path / "run" / ".lock"

    def replaced(file, operation):
        path.unlink()
        path.write_text("")
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", replaced)
    with pytest.raises(UserError, match="is in use by"), one_writer(tmp_path / "run"):
        raise AssertionError("two writers")
