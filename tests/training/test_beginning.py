"""Runs that begin from GPT-2's weights: what they take over, how they go on, what they refuse."""

import shutil

import numpy as np
import pytest
from flax import traverse_util
from support import GPT2_TINY

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.errors import UserError
from gpt_jax.gpt2.folder import open_folder
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import read_record
from gpt_jax.training import evaluation, loop
from gpt_jax.training.log import read_metrics
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED

SOURCE = str(GPT2_TINY)


@pytest.fixture
def config(text_file):
    """Four steps on a small text; nothing is said of the model but its products."""
    return Config.from_dict(
        {
            "model": {"matmul_dtype": "float32"},
            "data": {"corpus": str(text_file)},
            "optimizer": {"warmup_steps": 2},
            "train": {"steps": 4, "batch_size": 8, "eval_every": 2, "checkpoint_every": 2},
            "sample": {"prompt": "The ", "max_new_tokens": 5},
            "mesh": {"cpu_devices": 2},
        }
    )


def stored(path):
    """The parameters of the folder, by our paths, as they come out of the run in `path`."""
    params = traverse_util.flatten_dict(gpt_jax.load(path, 0).params, sep="/")
    folder = open_folder(GPT2_TINY)
    return {name: (param, folder.read(name, param.shape)) for name, param in params.items()}


def test_no_step_makes_a_run_of_the_weights_as_they_are(config, tmp_path, capsys):
    """Which can be sampled and evaluated; the same command then has nothing to do."""
    config = config.with_values("train", steps=0)
    assert loop.train(config, tmp_path / "run", init_from=SOURCE) == FINISHED
    for name, (param, tensor) in stored(tmp_path / "run").items():
        np.testing.assert_array_equal(param, tensor, err_msg=name)
    model = gpt_jax.load(tmp_path / "run")
    assert model.generate("The ", max_new_tokens=5).startswith("The ")
    [entry] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    found = evaluation.evaluate(tmp_path / "run", "latest")
    assert (entry["step"], entry["val/loss"]) == (0, pytest.approx(found.loss, abs=1e-6))
    assert model.val_loss == entry["val/loss"]
    assert found.tutorial_estimate is None  # It is of characters.
    out = capsys.readouterr().out
    assert "step 0/0  val" in out and "tutorial_estimate" not in out
    assert loop.train(config, tmp_path / "run", init_from=SOURCE) == ALREADY_FINISHED


def test_a_run_takes_shape_and_tokenizer_from_the_folder_and_records_it(config, tmp_path):
    config = config.with_values("train", steps=0)
    loop.train(config, tmp_path / "run", init_from=SOURCE)
    record = read_record(tmp_path / "run")
    assert record.init_from == SOURCE
    assert record.config.data.tokenizer == SOURCE
    c = record.config.model
    assert (c.n_layer, c.n_head, c.n_embd, c.block_size, c.vocab_size) == (2, 3, 12, 24, 288)
    assert c.qkv_bias and c.tie_embeddings and c.activation == "gelu_tanh"
    assert c.dropout == Config().model.dropout


def test_stacked_blocks_begin_with_the_weights_too(config, tmp_path):
    config = config.with_values("train", steps=0).with_values("model", scan_layers=True)
    loop.train(config, tmp_path / "run", init_from=SOURCE)
    assert read_record(tmp_path / "run").config.model.scan_layers
    for name, (param, tensor) in stored(tmp_path / "run").items():
        np.testing.assert_array_equal(param, tensor, err_msg=name)


@pytest.fixture
def die_at_save(monkeypatch):
    """Lets a run die at its n-th save."""

    def killed(n, *args, **kwargs):
        with monkeypatch.context() as patch:
            save, calls = Checkpoints.save, []

            def dying(*arguments):
                calls.append(1)
                return 1 / 0 if len(calls) == n else save(*arguments)

            patch.setattr(Checkpoints, "save", dying)
            with pytest.raises(ZeroDivisionError):
                loop.train(*args, **kwargs)

    return killed


def test_training_goes_on_from_the_weights_and_resumes_bit_for_bit(config, tmp_path, die_at_save):
    """Killed before anything is saved, and again at the end; in the end without the folder."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    source = shutil.copytree(GPT2_TINY, tmp_path / "gpt2")
    loop.train(config, straight, init_from=str(source))
    die_at_save(1, config, resumed, init_from=str(source))
    die_at_save(3, config, resumed)
    shutil.rmtree(source)
    assert loop.train(config, resumed) == FINISHED
    entries = [read_metrics(path / "metrics.jsonl") for path in (straight, resumed)]
    assert [entry["step"] for entry in entries[0]] == [0, 2, 4]
    assert entries[0][1]["train/loss"] != entries[0][2]["train/loss"]
    for name in ("step", "train/loss", "val/loss"):
        assert [e[name] for e in entries[0]] == [e[name] for e in entries[1]]


def test_weights_that_training_makes_worse_stay_the_best(config, tmp_path):
    config = config.with_values("optimizer", learning_rate=1.0, grad_clip=0.0)
    loop.train(config, tmp_path / "run", init_from=SOURCE)
    assert gpt_jax.load(tmp_path / "run", "best").step == 0
    assert gpt_jax.load(tmp_path / "run", "latest").step == 4


def test_an_average_begins_with_the_weights(config, tmp_path):
    config = config.with_values("optimizer", average_decay=0.5).with_values("train", steps=0)
    loop.train(config, tmp_path / "run", init_from=SOURCE)
    for name, (param, tensor) in stored(tmp_path / "run").items():
        np.testing.assert_array_equal(param, tensor, err_msg=name)


def test_what_contradicts_the_weights_is_told_and_nothing_is_made(config, tmp_path):
    config = config.with_values("model", n_layer=3, n_embd=24, n_head=3, dropout=0.5)
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path / "run", init_from=SOURCE)
    assert "(model.n_layer = 3, there 2; model.n_embd = 24, there 12)" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_weights_is_refused(config, tmp_path):
    config = config.with_values("train", steps=0)
    loop.train(config, tmp_path / "run", init_from=SOURCE)
    with pytest.raises(UserError, match=r"began from .*gpt2_tiny, not from /other"):
        loop.train(config, tmp_path / "run", init_from="/other")
    plain = config.with_values("model", n_layer=1, n_embd=16, block_size=16)
    loop.train(plain, tmp_path / "plain")
    with pytest.raises(UserError, match="began from random numbers, not from"):
        loop.train(plain, tmp_path / "plain", init_from=SOURCE)


def test_a_tokenizer_with_more_ids_than_the_weights_is_refused(config, tmp_path):
    config = config.with_values("data", tokenizer="bpe", bpe_vocab_size=300)
    with pytest.raises(UserError, match=r"model.vocab_size = 288, but the tokenizer has 300"):
        loop.train(config, tmp_path / "run", init_from=SOURCE)
    assert not (tmp_path / "run").exists()
