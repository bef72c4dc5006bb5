"""A run made by somebody else: it runs no code, its claims are checked, its links are refused."""

import ast
import json
import pickle
import shutil
import sys
from itertools import product

import jax.numpy as jnp
import pytest
from steps import target
from support import ROOT

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import existing_record
from gpt_jax.training import loop


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained run."""
    return shutil.copytree(trained, tmp_path / "run")


CODE = {"exec", "compile", "import", "pickle.find_class", "os.system", "subprocess.Popen"}


def test_loading_a_run_executes_no_code(trained):
    """After a first load has imported and compiled our own code, a second creates no code."""
    seen, watched = [], []
    sys.addaudithook(lambda event, args: watched and event in CODE and seen.append((event, args)))
    gpt_jax.load(trained)
    watched.append(True)
    gpt_jax.load(trained)
    assert seen == []
    pickle.loads(b"cbuiltins\nlen\n.")
    assert [event for event, _ in seen] == ["pickle.find_class"]
    watched.clear()


FORMATS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
FORMATS |= {"yaml", "runpy", "code", "importlib", "subprocess"}
CALLS = {"eval", "exec", "compile", "__import__"}


def test_no_module_uses_a_format_that_can_hold_code():
    reads_code = ROOT / "gpt_jax" / "tuning" / "reward.py"  # Only what the command line names.
    for path in {*(ROOT / "gpt_jax").rglob("*.py")} - {reads_code}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not FORMATS & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                of_versions = (node.module, names) == ("importlib", {"metadata"})
                assert node.module.split(".")[0] not in FORMATS or of_versions, path
            elif isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") not in CALLS, path
                assert "allow_pickle" not in [keyword.arg for keyword in node.keywords], path


def change_config(run, **model):
    path = run / "config.json"
    content = json.loads(path.read_text())
    del content["digests"]  # Else the change would be noticed.
    content["config"]["model"] |= model
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"n_embd": 10**7}, "does not fit the config.json"),
        ({"n_embd": 2**62, "n_head": 1}, "is out of range: it must be below 2"),
        ({"block_size": 10**12}, "is out of range: it must be below 2"),
        ({"n_layer": 10**6}, r"n_layer = 1000000 is out of range: it must be 1 to 256"),
        ({"vocab_size": 10**12}, r"vocab_size = 1000000000000 is out of range"),
        ({"vocab_size": 2**31 - 1}, "does not fit the config.json"),
        ({"vocab_size": 2}, "tokens, the model in config.json"),
        ({"matmul_dtype": "auto"}, "model.matmul_dtype = 'auto'"),
    ],
)
def test_a_config_with_a_huge_model_is_refused_before_memory_is_allocated(run, model, words):
    change_config(run, **model)
    with pytest.raises(UserError, match=words):
        gpt_jax.load(run)


def test_a_small_file_that_claims_many_numbers_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with Checkpoints.for_training(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(10_000_000)}, 1.0)
    with Checkpoints.for_training(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", pytest.fail)
        with pytest.raises(UserError, match=r"bytes claim to hold 10,000,000 numbers"):
            checkpoints.restore(1, target((10_000_000,)))


def test_a_wrong_list_of_arrays_is_refused(tmp_path, monkeypatch):
    for name, size in (("small", 3), ("large", 1000)):
        with Checkpoints.for_training(tmp_path / name) as checkpoints:
            checkpoints.save(1, {"w": jnp.arange(float(size))}, 1.0)
    for name in ("_METADATA", "array_metadatas/process_0"):
        shutil.copy(tmp_path / "small/1/state" / name, tmp_path / "large/1/state" / name)
    with Checkpoints.for_training(tmp_path / "large") as checkpoints:
        monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", pytest.fail)
        with pytest.raises(UserError, match=r"\(1000,\) float32 there and \(3,\) float32 here"):
            checkpoints.restore(1, target((3,)))


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "metrics.jsonl", "loss.png", "samples"),
        *("samples/200.txt", "checkpoints", "checkpoints/200", "checkpoints/200/state/_METADATA"),
    ],
)
def test_a_link_out_of_the_folder_is_refused(run, tmp_path, name):
    config = existing_record(run).config
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    for use in (lambda: gpt_jax.load(run), lambda: loop.train(config, run)):
        with pytest.raises(UserError, match=f"{name} is a link to {outside}, out of the folder"):
            use()


METADATA = "checkpoints/200/_CHECKPOINT_METADATA"
ARRAYS = "checkpoints/200/state/_METADATA"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *product(["config.json", "tokenizer.json", "metrics.jsonl", METADATA], ["pipe", "loop"]),
        (ARRAYS, "pipe"),  # A link to itself is damage: the checkpoint is set aside.
    ],
)
def test_a_pipe_or_a_link_to_itself_in_place_of_a_file_is_an_error_at_once(run, name, kind, mkfifo):
    config, path = existing_record(run).config, run / name
    shutil.rmtree(run / "samples")  # So the run is not finished.
    path.unlink()
    mkfifo(path) if kind == "pipe" else path.symlink_to(path)
    expected = r"a pipe, not a file|symbolic links"
    if name != "metrics.jsonl":
        with pytest.raises((UserError, OSError), match=expected):
            gpt_jax.load(run)
    if (name, kind) != ("metrics.jsonl", "loop"):  # A file replaces this link.
        with pytest.raises((UserError, OSError), match=expected):
            loop.train(config, run)


def test_a_link_inside_the_folder_is_allowed(run):
    (run / "newest").symlink_to(run / "checkpoints" / "200")
    assert gpt_jax.load(run, "latest").step == 200


@pytest.mark.parametrize("step", ["../200", "../../outside", "/", "200/", "0200", "-1", "²", "٢٠٠"])
def test_a_step_cannot_be_a_path(run, step):
    with pytest.raises(UserError, match="has no step"):
        gpt_jax.load(run, step)
