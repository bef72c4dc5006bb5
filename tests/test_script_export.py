"""export.py: from a run's folder to a folder of Hugging Face's."""

import export
import pytest

from gpt_jax import gpt2


def run(*flags):
    return export.main(["scripts/export.py", *flags])


def test_a_run_is_exported_and_what_is_told(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(f"--workdir={trained}", "--step=latest", f"--out={out}") == 0
    assert f"{trained}, step 200 (held-out loss" in capsys.readouterr().out
    assert gpt2.open_folder(out).config.n_layer == 2


def test_a_folder_that_exists_is_refused_before_anything_is_loaded(
    trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(export.gpt_jax, "load", None)
    assert run(f"--workdir={trained}", f"--out={tmp_path}") == 2
    assert "exists: name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir={trained}"], "--out is not given"),
        (["--workdir={folder}/none", "--out={folder}/out"], "holds no run"),
        (["--workdir={trained}", "--out={folder}"], "exists: name a new folder"),
        (["--workdir={trained}", "--out={folder}/out", "--step=7"], "has no step '7'"),
    ],
)
def test_what_cannot_work_is_one_sentence(trained, tmp_path, capsys, flags, words):
    assert run(*(flag.format(trained=trained, folder=tmp_path) for flag in flags)) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
