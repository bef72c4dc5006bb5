"""What all scripts share: --help."""

import importlib

import pytest

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
