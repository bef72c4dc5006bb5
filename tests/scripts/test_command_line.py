"""What all scripts share: --help, and what they do if nothing can be printed."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from support import ROOT

SCRIPTS = ["benchmark", "compare", "evaluate", "export", "prepare", "sample", "soak", "train"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_scripts_own_flags_in_80_columns(name, capsys):
    script = importlib.import_module(name)
    assert script.main([f"scripts/{name}.py", "--help"]) == 0
    usage, flags = capsys.readouterr().out.split("\nFlags:\n")
    assert usage.startswith(script.__doc__)
    assert f"python scripts/{name}.py" in usage
    assert all(len(line) <= 80 for line in (usage + "\n" + flags).splitlines())
    for noise in ("absl", "flagfile", "undefok", "[no]", "repeat this option", "default: 'false'"):
        assert noise not in flags, noise


def test_help_shows_values_choices_and_defaults(capsys):
    importlib.import_module("benchmark").main(["scripts/benchmark.py", "--help"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "--steps=N Steps to time (train). Default: 50." in lines
    assert "--mode=train|sample|start" in lines
    assert "--json Print one JSON object per line." in lines


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_standard_output_gets_one_sentence():
    command = [sys.executable, ROOT / "scripts" / "train.py", "--help_config"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 2
    assert re.fullmatch("error: standard output .* [(]No space left on device[)].*\n", done.stderr)
