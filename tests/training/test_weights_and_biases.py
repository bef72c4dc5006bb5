"""Weights & Biases, offline: what it gets, that a run which resumes stays one, and its failures."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support import ROOT

from gpt_jax.config.config import Config
from gpt_jax.errors import UserError
from gpt_jax.runs.record import Record, read_record, write_record
from gpt_jax.text.tokenizer import ByteTokenizer
from gpt_jax.training.weights_and_biases import check_wandb, run_id, wandb_run

RESOLVED = Config().with_values("model", vocab_size=256, matmul_dtype="float32")
RECORD = Record(RESOLVED, "builtin", "0" * 64, "cpu", 1)

# Trains four steps, without a network: only connections inside this machine are made.
OFFLINE = """
import socket, sys
connect = socket.socket.connect
def connect_here(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"no network: {address}")
    return connect(self, address)
socket.socket.connect = connect_here
import train
train.leave(train.main(["train.py", *sys.argv[1:]]))
"""
SETTINGS = {
    **{"model.block_size": 16, "model.n_layer": 1, "model.n_embd": 16, "mesh.cpu_devices": 1},
    **{"train.batch_size": 2, "train.log_every": 1, "train.eval_every": 2, "train.steps": 4},
    **{"optimizer.warmup_steps": 1, "sample.max_new_tokens": 5, "train.sample_tokens": 0},
}


@pytest.fixture
def workdir(tmp_path):
    """The folder of a run that was begun."""
    write_record(tmp_path / "run", RECORD, ByteTokenizer())
    return tmp_path / "run"


class FakeRun:
    """What `wandb.init` gives. It fails at the step `failing`."""

    def __init__(self, failing=None):
        self.failing, self.logged, self.finished = failing, [], []

    def log(self, numbers, step):
        if step == self.failing:
            raise BrokenPipeError("its process died")
        self.logged.append((step, numbers))

    def finish(self, exit_code=0):
        self.finished.append(exit_code)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the package. Returns the run, and what it was started with."""
    run, given = FakeRun(), {}

    def init(**options):
        given.update(options)
        return run

    package = SimpleNamespace(init=init, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return SimpleNamespace(run=run, given=given, package=package)


def test_it_gets_the_name_the_settings_and_every_number_of_the_log(workdir, fake):
    with wandb_run(workdir, RESOLVED) as write:
        write({"step": 10, "train/loss": 2.5, "tokens_per_s": None})
        write({"step": 20, "train/loss": 2.0, "val/loss": 2.25})
    assert fake.run.logged == [
        (10, {"train/loss": 2.5}),
        (20, {"train/loss": 2.0, "val/loss": 2.25}),
    ]
    assert fake.run.finished == [0]
    assert (fake.given["project"], fake.given["name"]) == ("gpt_jax", "run")
    assert fake.given["config"] == RESOLVED.to_dict()
    assert (fake.given["id"], fake.given["resume"]) == (run_id(workdir, RECORD), "allow")


def test_the_user_can_name_the_project(workdir, fake, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with wandb_run(workdir, RESOLVED):
        pass
    assert fake.given["project"] == "mine"


def test_without_the_flag_nothing_is_started(workdir, fake):
    with wandb_run(workdir, RESOLVED, writes=False) as write:
        write({"step": 10, "train/loss": 2.5})
    assert (fake.given, fake.run.logged, fake.run.finished) == ({}, [], [])


def test_a_run_that_ends_with_an_error_is_marked_as_failed(workdir, fake):
    with pytest.raises(UserError), wandb_run(workdir, RESOLVED):
        raise UserError("diverged")
    assert fake.run.finished == [1]


def test_a_failed_start_is_an_error_that_says_what_to_do(workdir, fake, capsys):
    def fail(**options):
        raise RuntimeError("no API key configured")

    fake.package.init = fail
    with (
        pytest.raises(UserError, match=r"\(no API key configured\): .* WANDB_MODE=offline"),
        wandb_run(workdir, RESOLVED),
    ):
        pytest.fail("it trains")


def test_a_later_failure_is_noted_once_and_training_continues(workdir, fake, capsys):
    fake.run.failing = 20
    with wandb_run(workdir, RESOLVED) as write:
        for step in (10, 20, 30):
            write({"step": step, "train/loss": 2.0})
    assert [step for step, _ in fake.run.logged] == [10]
    note = "note: Weights & Biases failed (its process died): it gets no more of this run\n"
    assert capsys.readouterr().err == note


def test_a_missing_package_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[wandb\]"'):
        check_wandb()


def test_the_id_of_a_run_stays_when_settings_change_on_resume(workdir):
    first = run_id(workdir, RECORD)
    changes = (
        {"step": 4, "field": "train.steps", "was": 3000, "is": 6000},
        {"step": 6, "field": "config.json", "was": "a", "is": "b"},
        {"step": 8, "field": "train.steps", "was": 6000, "is": 9000},
    )
    longer = Record(
        RESOLVED.with_values("train", steps=9000), "builtin", "0" * 64, "cpu", 1, changes
    )
    assert run_id(workdir, longer) == first


@pytest.mark.parametrize(
    "other",
    [
        Record(RESOLVED.with_values("train", seed=1), "builtin", "0" * 64, "cpu", 1),
        Record(RESOLVED, "builtin", "1" * 64, "cpu", 1),
        Record(RESOLVED, "builtin", "0" * 64, "cpu", 1, init_sha256="2" * 64),
    ],
)
def test_another_run_has_another_id(workdir, other):
    assert run_id(workdir, other) != run_id(workdir, RECORD)
    assert run_id(workdir.with_name("run-2"), RECORD) != run_id(workdir, RECORD)


def offline(folder, text_file, *flags):
    """Runs train.py --wandb in a process of its own. Its home and current folder is `folder`."""
    words = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    words += [f"--config.data.corpus={text_file}", f"--workdir={folder / 'run'}", "--wandb", *flags]
    chosen = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "HOME": str(folder)}
    places = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    kept = {n: v for n, v in os.environ.items() if not n.startswith("WANDB_") and n not in places}
    path = {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    return subprocess.run(
        [sys.executable, "-c", OFFLINE, *words],
        capture_output=True, text=True, env=kept | chosen | path, cwd=folder, timeout=300,
    )  # fmt: skip


def records(path):
    """The records of wandb's file: a log of LevelDB, in blocks of 32 KiB after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    content, part = path.read_bytes(), b""
    place = 7
    while place < len(content):
        if 32768 - place % 32768 < 7:  # No header fits into the rest of the block.
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # Whole, or the last part.
            yield Message.FromString(part)
            part = b""


def test_offline_a_run_and_its_resumed_half_are_one_run_with_every_loss(tmp_path, text_file):
    """Its two commands write two files here. Both have the id, under which W&B joins them."""
    first = offline(tmp_path, text_file, "--config.train.max_minutes=1e-6")
    assert (first.returncode, "after step 1:" in first.stderr) == (0, True), first.stderr
    second = offline(tmp_path, text_file)
    assert second.returncode == 0, second.stderr
    paths = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    messages = [message for path in paths for message in records(path)]
    started = [message.run for message in messages if message.HasField("run")]
    expected = run_id(tmp_path / "run", read_record(tmp_path / "run"))
    assert {(run.run_id, run.display_name, run.project) for run in started} == {
        (expected, "run", "gpt_jax")
    }
    found = {}
    for message in (message for message in messages if message.HasField("history")):
        items = {item.key or item.nested_key[0]: item.value_json for item in message.history.item}
        found[int(items["_step"])] = items
    assert [*found] == [1, 2, 3, 4]
    assert all("train/loss" in items for items in found.values())
    assert [step for step, items in found.items() if "val/loss" in items] == [2, 4]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "tokenizer.json", "metrics.jsonl", "loss.png", "samples", "checkpoints"),
        ".lock",
    }
