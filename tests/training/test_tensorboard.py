"""TensorBoard event files hold the numbers of the log."""

import resource
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event

from gpt_jax.errors import UserError
from gpt_jax.training import tensorboard


def events(folder):
    """The events of all files. A record is 8 bytes of length, 4 of checksum, the event, 4 more."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            yield Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_event_files_hold_every_number_of_the_log(tmp_path):
    with tensorboard.event_files(tmp_path, 0) as write:
        write({"step": 10, "train/loss": 2.5, "tokens_per_s": None})
        write({"step": 20, "train/loss": 2.0, "val/loss": 2.25})
    found = {
        (event.step, value.tag): value.simple_value
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    assert found == {(10, "train/loss"): 2.5, (20, "train/loss"): 2.0, (20, "val/loss"): 2.25}


def test_a_resumed_run_drops_events_after_its_checkpoint(tmp_path):
    with tensorboard.event_files(tmp_path, 40) as write:
        write({"step": 50, "train/loss": 1.0})
    starts = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [41]


def test_a_missing_package_is_an_error_with_the_install_command(monkeypatch):
    tensorboard.check_tensorboard()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[tensorboard\]"'):
        tensorboard.check_tensorboard()


def test_a_full_disk_ends_the_events_but_not_the_run(tmp_path, capsys):
    """Many events: a thread and its queue would block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tensorboard.event_files(tmp_path, 0) as write:
        write({"step": 1, "train/loss": 2.5})
        [path] = (tmp_path / "tensorboard").iterdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
        try:
            for step in range(2, 100):
                write({"step": step, "train/loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    note = f"note: {tmp_path / 'tensorboard'} cannot be written (File too large): TensorBoard gets"
    assert capsys.readouterr().err == f"{note} no more steps\n"
