"""compare.py: one row and one curve for each run."""

import json
import re
import shutil

import compare
import pytest

from gpt_jax.training.log import read_metrics


@pytest.fixture
def other(trained, tmp_path):
    """A copy of a run, as if it had been wider and worse."""
    copy = shutil.copytree(trained, tmp_path / "other")
    record = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    record["config"]["model"]["n_embd"] = 64
    record["config"]["sample"]["prompt"] = "else"
    (copy / "config.json").write_text(json.dumps(record), encoding="utf-8")
    entries = [
        {"step": 10, "train/loss": 4.0, "val/loss": 3.5, "tokens_per_s": None, "elapsed_s": 5.0},
        {"step": 20, "train/loss": 3.0, "val/loss": 3.75, "tokens_per_s": 1200, "elapsed_s": 65.4},
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    return copy


def test_a_row_for_each_run_and_a_picture(trained, other, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "curves.png"
    assert compare.main(["scripts/compare.py", str(trained), f"{other}/", f"--out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", lines[0].strip()) == list(compare.COLUMNS)
    entries = read_metrics(trained / "metrics.jsonl")
    assert lines[1].split()[:3] == [str(trained), "200", f"{entries[-1]['val/loss']:.4f}"]
    row = [str(other), "20", "3.7500", "3.5000", "10", "1:05", "1,200", "n_embd=64"]
    assert lines[2].split() == row
    assert lines[3] == f"curves: {out}"
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no run is named"),
        (["/nothing"], "/nothing holds no run"),
        (
            ["{run}", "--out=/nothing/x.png"],
            "--out=/nothing/x.png cannot be written .*No such file",
        ),
        (["{run}", "--uot=x.png"], "uot.*out"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(trained, flags, words, capsys):
    flags = [flag.format(run=trained) for flag in flags]
    assert compare.main(["scripts/compare.py", *flags]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(words, err)


def test_a_run_without_a_log_is_named(other, capsys):
    (other / "metrics.jsonl").unlink()
    assert compare.main(["scripts/compare.py", str(other)]) == 2
    assert re.fullmatch(r"error: .*other has no log yet .*\n", capsys.readouterr().err)
