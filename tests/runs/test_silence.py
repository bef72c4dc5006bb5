"""A failure prints our sentence, and nothing of Orbax, asyncio or uvloop."""

import logging
import os
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
from support import ROOT

from gpt_jax.runs.silence import silence_orbax

TASK = "Task exception was never retrieved\nfuture: <Task finished name='Task-9' coro=<%s>"


@pytest.fixture
def silent(monkeypatch):
    """Silence from the beginning, whatever other tests of this process did."""
    others = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    silence_orbax.__wrapped__()
    return others


def test_tasks_that_nobody_waits_for_are_not_logged_but_those_of_others_are(silent, caplog):
    log = logging.getLogger("asyncio")
    log.error(TASK, "serialize() at site-packages/orbax/checkpoint/type_handlers.py:9")
    log.error(TASK, "_wrap_awaitable()> exception=ValueError('... [tensorstore_spec=...]')")
    code = compile("raise FileNotFoundError", "site-packages/orbax/checkpoint/path.py", "exec")
    try:
        exec(code)
    except FileNotFoundError as error:
        log.error("Future exception was never retrieved", exc_info=error)
    log.error(TASK, "users_own()")
    assert [record.args for record in caplog.records] == [("users_own()",)]


def test_tasks_that_end_after_a_failure_are_not_shown_but_other_errors_are(silent):
    no_socket = AttributeError("'_UnixSelectorEventLoop' object has no attribute '_ssock'")
    for error in (RuntimeError("Event loop is closed"), no_socket, RuntimeError("a user's own")):
        sys.unraisablehook(SimpleNamespace(exc_value=error, object=None))
    assert [str(one.exc_value) for one in silent] == ["a user's own"]


def test_coroutines_of_orbax_that_fail_when_they_are_closed_are_not_shown(silent):
    for file in ("site-packages/orbax/checkpoint/serialization.py", "own.py"):
        coroutine = SimpleNamespace(cr_code=SimpleNamespace(co_filename=file))
        sys.unraisablehook(SimpleNamespace(exc_value=Exception(file), object=coroutine))
    assert [str(one.exc_value) for one in silent] == ["own.py"]


def test_only_coroutines_of_orbax_get_no_warning(silent):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        silence_orbax.__wrapped__()
        for name in ("X.Checkpoint.save", "run_sync.<locals>.x", "_read_array_index", "own"):
            warnings.warn(f"coroutine {name!r} was never awaited", RuntimeWarning, stacklevel=1)
    assert [str(one.message) for one in shown] == ["coroutine 'own' was never awaited"]


def test_a_damaged_manifest_prints_one_sentence(trained, tmp_path):
    """Without silence, asyncio or uvloop print 30 to 300 lines in most of the processes."""
    shutil.copytree(trained / "checkpoints" / "200", tmp_path / "run" / "checkpoints" / "200")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(trained / name, tmp_path / "run")
    (tmp_path / "run/checkpoints/200/state/manifest.ocdbt").write_bytes(b"?" * 200)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "sample.py", f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    first, second = done.stderr.splitlines()
    assert (done.returncode, done.stdout, first.split()[0]) == (2, "", "loading")
    assert "/200 cannot be restored (" in second
