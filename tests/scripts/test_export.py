"""export.py: from a run's folder to a folder in Hugging Face's format."""

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
    """Makes a run without steps."""
    words = [f"data.corpus={text}", "train.steps=0", "train.batch_size=8", "mesh.cpu_devices=1"]
    words = [f"--config.{word}" for word in words] + [f"--workdir={workdir}", *flags]
    assert train.main(["scripts/train.py", *words]) == 0
    return workdir


def test_a_run_is_exported_and_its_step_is_printed(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(f"--workdir={trained}", "--step=latest", f"--out={out}") == 0
    assert f"{trained}, step 200 (validation loss" in capsys.readouterr().out
    assert open_folder(out).config.n_layer == 2


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_an_exported_model_comes_back_as_a_run(trained, text_file, tmp_path, kind):
    """The new parameters are biases, and they are zeros."""
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


def test_an_existing_folder_is_refused_before_the_model_is_loaded(
    trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(export.gpt_jax, "load", None)
    assert run(f"--workdir={trained}", f"--out={tmp_path}") == 2
    assert "exists: choose a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir={trained}"], "--out is not given"),
        (["--workdir={folder}/none", "--out={folder}/out"], "holds no run"),
        (["--workdir={trained}", "--out={folder}"], "exists: choose a new folder"),
        (["--workdir={trained}", "--out={folder}/out", "--step=7"], "has no step '7'"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(trained, tmp_path, capsys, flags, words):
    assert run(*(flag.format(trained=trained, folder=tmp_path) for flag in flags)) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: ") and err.count("error") == 1
    assert list(tmp_path.iterdir()) == []
