"""export.py: from a run's folder to a folder of Hugging Face's."""

import export
import numpy as np
import pytest
import train
from flax import traverse_util

import gpt_jax
from gpt_jax.gpt2.folder import open_folder
from gpt_jax.text.tokenizer import CharTokenizer


def run(*flags):
    return export.main(["scripts/export.py", *flags])


def begin(workdir, text, *flags):
    """A run without steps."""
    words = [f"data.corpus={text}", "train.steps=0", "train.batch_size=8", "mesh.cpu_devices=1"]
    words = [f"--config.{word}" for word in words] + [f"--workdir={workdir}", *flags]
    assert train.main(["scripts/train.py", *words]) == 0
    return workdir


def test_a_run_is_exported_and_what_is_told(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(f"--workdir={trained}", "--step=latest", f"--out={out}") == 0
    assert f"{trained}, step 200 (held-out loss" in capsys.readouterr().out
    assert open_folder(out).config.n_layer == 2


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_an_exported_model_comes_back_as_a_run(trained, text_file, tmp_path, kind):
    """What it did not have before are biases, of zeros."""
    if kind == "byte":
        model = ("n_layer=1", "n_embd=12", "n_head=3", "block_size=16")
        flags = ["--config.data.tokenizer=byte", *(f"--config.model.{word}" for word in model)]
        trained = begin(tmp_path / "bytes", text_file, *flags)
    assert run(f"--workdir={trained}", f"--out={tmp_path / 'out'}") == 0
    back = begin(tmp_path / "back", text_file, f"--init_from={tmp_path / 'out'}")
    old, new = gpt_jax.load(trained), gpt_jax.load(back)
    before, after = (traverse_util.flatten_dict(m.params, sep="/") for m in (old, new))
    for name, param in after.items():
        np.testing.assert_array_equal(param, before.get(name, 0 * param), err_msg=name)
    assert before.keys() <= after.keys()
    np.testing.assert_array_equal(*(m.tokenizer.encode("The king") for m in (old, new)))
    assert type(new.tokenizer) is CharTokenizer or kind == "byte"


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
