"""soak.py: a run killed at random ends with the same bits, and any difference is named."""

import json
import re
import shutil

import pytest
import soak


def test_two_kills(capfd):
    status = soak.main(["scripts/soak.py", "--kills=2", "--steps=60", "--seed=1"])
    out, err = capfd.readouterr()
    assert (status, err) == (0, "")
    assert re.match(r"[12] kills \(\d before its first line.*\); no checkpoint was lost\n", out)
    assert re.search(r"\d+ arrays, 12 lines and 2 samples: same bit for bit", out)


def change_a_loss(run):
    *lines, last = (run / "metrics.jsonl").read_text().splitlines()
    last = json.dumps(json.loads(last) | {"train/loss": 1.0})
    (run / "metrics.jsonl").write_text("\n".join([*lines, last]))


def change_the_sample(run):
    (run / "samples" / "200.txt").write_text("another")


def change_the_arrays(run):
    shutil.rmtree(run / "checkpoints" / "200")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda run: None, []),
        (change_a_loss, ["log"]),
        (change_the_sample, ["text"]),
        (change_the_arrays, ["arrays"]),
    ],
)
def test_every_difference_between_two_runs_is_named(trained, tmp_path, change, names):
    run = shutil.copytree(trained, tmp_path / "run")
    change(run)
    assert soak.differences(trained, run) == names


@pytest.mark.parametrize("flag", ["--kills=0", "--steps=-1", "--seed=-1", "--kills=x"])
def test_bad_input_gets_one_sentence_and_status_2(capsys, flag):
    assert soak.main(["scripts/soak.py", flag]) == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)
