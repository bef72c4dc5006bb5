"""power_cut.py: bad input gets one sentence. It mounts disks, so no test runs it."""

import os

import power_cut
import pytest


@pytest.mark.parametrize(
    ("flags", "user", "words"),
    [
        (["--cuts=0"], 0, "cuts = 0 is out of range"),
        (["--seed=-1"], 0, "seed = -1 is out of range"),
        ([], 1000, "only root can mount disks"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(flags, user, words, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    assert power_cut.main(["scripts/power_cut.py", *flags]) == 2
    assert words in capsys.readouterr().err
