"""Ctrl-C, SIGTERM and SIGHUP end every script with one line, whatever it does at that moment."""

import ast
import importlib
import os
import signal
import subprocess
import sys

import pytest
from support import ROOT

SCRIPTS = ROOT / "scripts"
WITH_MAIN = sorted(path for path in SCRIPTS.glob("*.py") if "def main(" in path.read_text())

# A script that gets a signal in its `main`. Whoever gets an exception there swallows it.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import command_line
from gpt_jax.files import replacing
SWALLOWING = '''
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000): pass  # Python handles a signal between two steps.
except BaseException: pass
'''
def importing():
    Path("swallowing.py").write_text(SWALLOWING)
    import swallowing
def in_jax():
    exec(compile(SWALLOWING, "/site-packages/jax/_src/callback.py", "exec"))
def elsewhere():
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000): pass
def main(values, words):
    with replacing(Path("out")) as file:
        try:
            {moment}()
        finally:
            print("cleaned up", flush=True)
    print("swallowed")
sys.path.insert(0, "")
sys.exit(command_line.run(main, (), ["script"], ""))
"""


def run(folder, code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{SCRIPTS}", "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("moment", ["importing", "in_jax", "elsewhere"])
def test_a_signal_is_never_swallowed_and_leaves_no_file(tmp_path, name, moment):
    """Where an exception could be swallowed the process exits at once; elsewhere it cleans up."""
    done = run(tmp_path, SCRIPT.format(name=name, moment=moment))
    assert (done.returncode, done.stderr) == (128 + getattr(signal, name), "\ninterrupted\n")
    assert done.stdout == ("cleaned up\n" if moment == "elsewhere" else "")
    assert {path.name for path in tmp_path.iterdir()} <= {"swallowing.py"}


def test_a_second_signal_ends_a_script_that_still_cleans_up(tmp_path):
    code = SCRIPT.format(name="SIGINT", moment="elsewhere")
    done = run(
        tmp_path, code.replace('print("cleaned up", flush=True)', "elsewhere(), print('no')")
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_are_handled_before_the_other_modules_are_imported(tmp_path, name):
    code = (
        f"import sys, os, signal; sys.argv = [{str(SCRIPTS / 'sample.py')!r}]\n"
        f"import early_exit; os.kill(os.getpid(), signal.{name}); print('swallowed')"
    )
    done = run(tmp_path, code)
    status = 128 + getattr(signal, name)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "\ninterrupted\n")


@pytest.mark.parametrize(
    "script", [*WITH_MAIN, SCRIPTS / "command_line.py"], ids=lambda path: path.stem
)
def test_every_script_handles_signals_before_its_slow_imports(script):
    imports = [
        node.names[0].name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.parse(script.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    others = [name for name in imports if name.partition(".")[0] not in sys.stdlib_module_names]
    assert others[0] == ("early_exit" if script.stem == "command_line" else "command_line")


def test_a_program_that_imports_a_script_keeps_its_handlers(monkeypatch):
    """Whatever handler it began with: a shell's background jobs begin with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for name in ("command_line", "early_exit"):  # Imports early_exit.
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.import_module("command_line")
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
