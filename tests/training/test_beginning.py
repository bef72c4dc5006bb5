"""Runs that begin from GPT-2's weights: what they take from the folder, and what they refuse."""

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from steps import share_steps
from support import GPT2_TINY

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.devices.device_count import start_devices
from gpt_jax.errors import UserError
from gpt_jax.gpt2.folder import open_folder
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import read_record
from gpt_jax.text import make_tokenizer, play, preparation, save_tokenizer
from gpt_jax.training import evaluation, loop
from gpt_jax.training.log import read_metrics
from gpt_jax.training.run import prepare
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED

SOURCE = str(GPT2_TINY)


@pytest.fixture(autouse=True)
def shared_steps(monkeypatch):
    """Runs share their compiled steps."""
    share_steps(monkeypatch)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four steps on a small text. Of the model it sets only the dtype of matrix products."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(play.write()[:10_000], encoding="utf-8")
    return Config.from_dict(
        {
            "model": {"matmul_dtype": "float32"},
            "data": {"corpus": str(path)},
            "optimizer": {"warmup_steps": 2},
            "train": {"steps": 4, "batch_size": 8, "eval_every": 2, "checkpoint_every": 2},
            "sample": {"prompt": "The ", "max_new_tokens": 5},
            "mesh": {"cpu_devices": 2},
        }
    )


@pytest.fixture(scope="module")
def untrained(config, tmp_path_factory):
    """A run of no steps, and what it printed. Nobody may change it."""
    workdir, out = tmp_path_factory.mktemp("untrained") / "run", io.StringIO()
    with contextlib.redirect_stdout(out):
        stop = loop.train(config.with_values("train", steps=0), workdir, init_from=SOURCE)
    assert stop == FINISHED
    return workdir, out.getvalue()


def check_params_are_the_weights(workdir):
    params = traverse_util.flatten_dict(gpt_jax.load(workdir, 0).params, sep="/")
    folder = open_folder(GPT2_TINY)
    for name, param in params.items():
        np.testing.assert_array_equal(param, folder.read(name, param.shape), err_msg=name)


def test_a_run_of_no_steps_holds_the_weights_and_can_be_sampled_and_evaluated(config, untrained):
    workdir, out = untrained
    check_params_are_the_weights(workdir)
    model = gpt_jax.load(workdir)
    assert model.generate("The ", max_new_tokens=5).startswith("The ")
    [entry] = read_metrics(workdir / "metrics.jsonl")
    found = evaluation.evaluate(workdir, "latest")
    assert (entry["step"], entry["val/loss"]) == (0, pytest.approx(found.loss, abs=1e-6))
    assert model.val_loss == entry["val/loss"]
    assert found.tutorial_estimate is None  # It is in nats per character.
    assert f"{entry['val/loss']:.4f}" in out
    config = config.with_values("train", steps=0)
    assert loop.train(config, workdir, init_from=SOURCE) == ALREADY_FINISHED


def test_a_run_takes_shape_and_tokenizer_from_the_folder_and_records_it(untrained):
    record = read_record(untrained[0])
    assert record.init_from == SOURCE
    assert record.config.data.tokenizer == SOURCE
    c = record.config.model
    assert (c.n_layer, c.n_head, c.n_embd, c.block_size, c.vocab_size) == (2, 3, 12, 24, 288)
    assert c.qkv_bias and c.tie_embeddings and c.activation == "gelu_tanh"
    assert c.dropout == Config().model.dropout


@pytest.mark.parametrize(
    ("section", "values"),
    [("model", {"scan_layers": True}), ("optimizer", {"average_decay": 0.5})],
)
def test_stacked_blocks_and_an_average_begin_with_the_weights(config, tmp_path, section, values):
    config = config.with_values("train", steps=0).with_values(section, **values)
    loop.train(config, tmp_path / "run", init_from=SOURCE)
    recorded = read_record(tmp_path / "run").config.to_dict()[section]
    assert recorded == recorded | values
    check_params_are_the_weights(tmp_path / "run")


def train_until_save(number, *args, **kwargs):
    """Trains a run that dies at a save."""
    save, calls = Checkpoints.save, []

    def die_at_save(*arguments):
        calls.append(1)
        return 1 / 0 if len(calls) == number else save(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", die_at_save)
        with pytest.raises(ZeroDivisionError):
            loop.train(*args, **kwargs)


def test_a_run_from_weights_resumes_bit_for_bit_and_its_best_can_be_the_weights(config, tmp_path):
    """It is killed before its first save, and before its last, and ends without the folder.

    The learning rate is so high that training makes the weights worse.
    """
    config = config.with_values("optimizer", learning_rate=1.0, grad_clip=0.0)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    source = shutil.copytree(GPT2_TINY, tmp_path / "gpt2")
    loop.train(config, straight, init_from=str(source))
    train_until_save(1, config, resumed, init_from=str(source))
    train_until_save(3, config, resumed)
    shutil.rmtree(source)
    assert loop.train(config, resumed) == FINISHED
    entries = [read_metrics(path / "metrics.jsonl") for path in (straight, resumed)]
    assert [entry["step"] for entry in entries[0]] == [0, 2, 4]
    assert entries[0][1]["train/loss"] != entries[0][2]["train/loss"]
    for name in ("step", "train/loss", "val/loss"):
        assert [entry[name] for entry in entries[0]] == [entry[name] for entry in entries[1]]
    for workdir in (straight, resumed):
        assert gpt_jax.load(workdir, "best").step == 0
        assert gpt_jax.load(workdir, "latest").step == 4


def test_settings_that_contradict_the_weights_are_refused_and_nothing_is_created(config, tmp_path):
    config = config.with_values("model", n_layer=3, n_embd=24, n_head=3, dropout=0.5)
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path / "run", init_from=SOURCE)
    expected = "(model.n_layer = 3 instead of 2; model.n_embd = 24 instead of 12)"
    assert expected in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_from_other_weights_is_refused(config, untrained, tmp_path):
    with pytest.raises(UserError, match=r"began from .*gpt2_tiny, not from /other"):
        loop.train(config, untrained[0], init_from="/other")
    plain = config.with_values("model", n_layer=1, n_embd=16, block_size=16)
    devices = start_devices(plain.mesh, plain.train.batch_size)
    prepare(plain, tmp_path / "plain", None, devices)
    (tmp_path / "plain" / "metrics.jsonl").write_text('{"step": 1}\n')  # So it has begun.
    with pytest.raises(UserError, match="began from random parameters, not from"):
        loop.train(plain, tmp_path / "plain", init_from=SOURCE)


def test_a_tokenizer_with_more_ids_than_the_weights_is_refused(config, tmp_path):
    config = config.with_values("data", tokenizer="bpe", bpe_vocab_size=300)
    with pytest.raises(
        UserError, match=r"has 300 tokens, but the weights of .* only 288: give the"
    ):
        loop.train(config, tmp_path / "run", init_from=SOURCE)
    assert not (tmp_path / "run").exists()


TEXT = play.write()[:10_000]


def lay_out(project, given, text=TEXT):
    """Writes a project's text, tokenizer or prepared corpus. Returns the settings that name it."""
    project.mkdir(exist_ok=True)
    (project / "my.txt").write_text(text, encoding="utf-8")
    tokenizer = make_tokenizer("char", [text], 0)
    save_tokenizer(tokenizer, project / "letters.json")
    settings = {"corpus": "my.txt"}
    if given == "a tokenizer":
        return settings | {"tokenizer": "letters.json"}
    if given == "a prepared corpus":
        data = Config().with_values("data", corpus=str(project / "my.txt")).data
        preparation.prepare(data, project / "ids", 9999, lambda *progress: None)
        return {"corpus": "ids"}
    return settings


@pytest.fixture(params=["a text", "a tokenizer", "a prepared corpus"])
def moved(request, config, tmp_path, monkeypatch):
    """A project with a run of two steps, moved, and the configuration for two more."""
    data = lay_out(tmp_path / "old", request.param)
    config = config.with_values("model", n_layer=1, n_embd=16, block_size=16)
    config = config.with_values("data", **data)
    monkeypatch.chdir(tmp_path / "old")
    loop.train(config.with_values("train", steps=2), Path("run"))
    monkeypatch.chdir((tmp_path / "old").rename(tmp_path / "new"))
    return request.param, config, tmp_path / "new"


def test_a_project_that_moved_resumes_and_records_where_it_is(moved):
    _, config, project = moved
    assert loop.train(config, Path("run"), resume_allow=["train.steps"]) == FINISHED
    record = read_record(Path("run"))
    data = record.config.data
    assert data.corpus == record.requested_corpus == str(project / config.data.corpus)
    assert data.tokenizer in ("char", str(project / "letters.json"))
    paths = [change for change in record.changes if change["field"].startswith("data.")]
    assert all(change["was"] == change["is"].replace("/new/", "/old/") for change in paths)
    assert len(paths) == 1 + (data.tokenizer != "char")
    losses = [entry["val/loss"] for entry in read_metrics(Path("run") / "metrics.jsonl")]
    assert evaluation.evaluate(Path("run"), "latest").loss == pytest.approx(losses[-1], rel=1e-6)
    assert loop.train(config, Path("run")) == ALREADY_FINISHED


def test_a_project_that_moved_and_changed_is_refused(moved):
    given, config, project = moved
    shutil.rmtree(project / "ids", ignore_errors=True)
    lay_out(project, given, TEXT.replace("a", "#"))
    before = (project / "run" / "config.json").read_bytes()
    words = "data.tokenizer was" if given == "a tokenizer" else "the text at .* is not the one"
    with pytest.raises(UserError, match=words):
        loop.train(config, Path("run"), resume_allow=["train.steps"])
    assert (project / "run" / "config.json").read_bytes() == before


def test_the_same_ids_with_other_characters_are_another_prepared_corpus(config, tmp_path):
    """The hash of the ids alone does not show it."""
    lay_out(tmp_path, "a prepared corpus")
    config = config.with_values("model", n_layer=1, n_embd=16, block_size=16)
    config = config.with_values("data", corpus=str(tmp_path / "ids"))
    loop.train(config.with_values("train", steps=2), tmp_path / "run")
    shutil.rmtree(tmp_path / "ids")
    lay_out(tmp_path, "a prepared corpus", TEXT.translate({ord("z"): "{"}))
    with pytest.raises(UserError, match=r"the tokenizer of .*ids is not that of the run"):
        loop.train(config, tmp_path / "run", resume_allow=["train.steps"])


def test_an_edit_of_a_finished_run_is_accepted_if_allowed(config, tmp_path):
    """Its sample is then written again."""
    config = config.with_values("model", n_layer=1, n_embd=16, block_size=16)
    config, workdir = config.with_values("train", steps=2), tmp_path / "run"
    loop.train(config, workdir)
    path, sample = workdir / "config.json", workdir / "samples" / "2.txt"
    path.write_text(path.read_text().replace('"max_new_tokens": 5', '"max_new_tokens": 9'))
    before = sample.stat().st_mtime_ns
    for use in (lambda: gpt_jax.load(workdir), lambda: loop.train(config, workdir)):
        with pytest.raises(UserError, match=r"config\.json is not what the run wrote"):
            use()
    assert loop.train(config, workdir, resume_allow=["config.json"]) == FINISHED
    assert sample.stat().st_mtime_ns > before
    assert gpt_jax.load(workdir).config.sample.max_new_tokens == 9
    assert loop.train(config, workdir) == ALREADY_FINISHED


def test_a_run_of_no_steps_can_be_extended(config, tmp_path):
    config = config.with_values("model", n_layer=1, n_embd=16, block_size=16)
    straight, extended = tmp_path / "straight", tmp_path / "extended"
    loop.train(config, straight)
    assert loop.train(config.with_values("train", steps=0), extended) == FINISHED
    assert loop.train(config, extended, resume_allow=["train.steps"]) == FINISHED
    entries = [read_metrics(path / "metrics.jsonl") for path in (straight, extended)]
    assert [entry["step"] for entry in entries[1]] == [0, 2, 4]
    for name in ("train/loss", "val/loss", "lr"):
        assert [e[name] for e in entries[0]] == [e[name] for e in entries[1][1:]]
    assert (straight / "samples/4.txt").read_text() == (extended / "samples/4.txt").read_text()


def test_numbers_that_are_not_finite_are_refused_before_anything_is_written(config, tmp_path):
    source = shutil.copytree(GPT2_TINY, tmp_path / "gpt2")
    tensors = load_file(source / "model.safetensors")
    tensors["transformer.ln_f.bias"][3] = np.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match=r"holds numbers in transformer.ln_f.bias that are not fin"):
        loop.train(config, tmp_path / "run", init_from=str(source))
    assert not (tmp_path / "run").exists()
