"""Distillation: the mean of the teachers, the loss, whole runs, what is refused."""

import contextlib
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import arrays
from steps import setting, windows
from support import GPT2_TINY

import gpt_jax
from gpt_jax.config.config import Config, TuneConfig
from gpt_jax.errors import UserError
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.record import read_record
from gpt_jax.text import play
from gpt_jax.training import loop
from gpt_jax.training.distillation import (
    Teacher,
    distillation_losses,
    mean_probabilities,
    teacher_folders,
)
from gpt_jax.training.log import read_metrics
from gpt_jax.training.stopping import FINISHED
from gpt_jax.tuning import make_maker


@pytest.fixture(scope="module", params=[1, 4], ids=["1 device", "4 devices"])
def taught(small, request):
    """Two models of other sizes, a batch, and the probabilities of both."""
    config = small.with_values("model", dropout=0.0)
    _, _, layout = setting(config, cpu_devices=request.param)
    batch = layout.place(windows(config, 0))
    teachers, expected = [], []
    for number, width in enumerate((16, 32)):
        c = config.with_values("model", n_embd=width).model
        model, tokens = GPT(c), np.asarray(batch).reshape(-1, 17)[:, :-1]
        params = jax.tree.map(
            lambda leaf: 3 * leaf.value if hasattr(leaf, "value") else 3 * leaf,
            model.init(jax.random.key(number), tokens)["params"],
            is_leaf=lambda leaf: hasattr(leaf, "value"),
        )
        teachers.append(Teacher(c, params, str(number)))
        expected.append(jax.nn.softmax(model.apply({"params": params}, tokens)))
    return teachers, batch, np.stack(expected)


def test_targets_are_the_mean_of_the_teachers_distributions(taught):
    teachers, batch, expected = taught
    found = mean_probabilities(teachers, batch)
    assert found.sharding.is_equivalent_to(batch.sharding, found.ndim)
    flat = np.asarray(found).reshape(expected.shape[1:])
    np.testing.assert_allclose(flat, expected.mean(0), atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_loss_is_the_cross_entropy_with_the_targets(taught, temperature):
    teachers, batch, p = taught
    model, params = GPT(teachers[0].config), teachers[0].params
    rows = {"windows": np.asarray(batch).reshape(-1, 17), "targets": p[1]}
    losses, _ = distillation_losses(model, params, rows, None, temperature)
    log_p = np.log(p[0]) / temperature
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    expected = -(p[1] * log_p).sum(-1).mean(-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_model_has_nothing_to_learn_from_itself(taught):
    """The gradient of the cross-entropy is the difference of the distributions."""
    teachers, batch, p = taught
    model, tokens = GPT(teachers[0].config), np.asarray(batch).reshape(-1, 17)

    def gradient(targets):
        rows = {"windows": tokens, "targets": targets}
        loss = jax.grad(lambda params: distillation_losses(model, params, rows, None)[0].mean())
        return max(float(jnp.abs(g).max()) for g in jax.tree.leaves(loss(teachers[0].params)))

    assert gradient(p[0]) < 1e-6
    assert gradient(p[1]) > 1e-3


def config_for(trained, *teachers, **train):
    """Four steps with the text and the model of the run that teaches."""
    values = read_record(trained).config.to_dict()
    values["train"] |= {"steps": 4, "eval_every": 2, "checkpoint_every": 2, "log_every": 1}
    values["train"] |= {"teachers": ",".join(map(str, teachers))} | train
    values["optimizer"] |= {"schedule": "constant"}
    values["model"] |= {"n_layer": 1, "n_embd": 16}
    return Config.from_dict(values)


def train(config, workdir, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return loop.train(config, workdir, maker=make_maker(config, False), **options)


@pytest.fixture(scope="module")
def distilled(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("distilled") / "run"
    assert train(config_for(trained, trained, trained), workdir) == FINISHED
    return workdir


def test_a_run_learns_from_its_teachers_and_is_like_any_other(distilled, trained):
    lines = [
        line
        for line in read_metrics(distilled / "metrics.jsonl")
        if line.get("train/loss") is not None
    ]
    assert len(lines) == 4
    assert all(line["train/loss"] > 0 for line in lines)
    assert gpt_jax.load(distilled).generate("The ", max_new_tokens=5).startswith("The ")
    record = read_record(distilled)
    assert record.config.train.teachers == f"{trained},{trained}"
    assert len(record.data_sha256) == 64


def test_a_run_that_stops_resumes_bit_for_bit(distilled, trained, tmp_path):
    assert train(config_for(trained, trained, trained, steps=2), tmp_path / "run") == FINISHED
    longer = config_for(trained, trained, trained)
    assert train(longer, tmp_path / "run", resume_allow=["train.steps"]) == FINISHED
    jax.tree.map(np.testing.assert_array_equal, arrays(tmp_path / "run"), arrays(distilled))


def test_other_teachers_are_refused(trained, tmp_path):
    train(config_for(trained, trained, steps=2), tmp_path / "run")
    train(config_for(trained, trained, seed=1, steps=2), tmp_path / "other")
    other = config_for(trained, tmp_path / "other")
    with pytest.raises(UserError, match=r"train\.teachers"):
        train(other, tmp_path / "run", resume_allow=["train.steps"])
    allowed = ["train.steps", "train.teachers"]
    with pytest.raises(UserError, match="is not what the run in"):
        train(other, tmp_path / "run", resume_allow=allowed)


@pytest.mark.parametrize(
    ("teacher", "model", "corpus", "words"),
    [
        ("missing", {}, "", "missing"),
        (GPT2_TINY, {}, "", "a teacher is a run"),
        ("", {"block_size": 32}, "", "reads 16 tokens, and this run 32"),
        ("", {"vocab_size": 100}, "", "another vocabulary"),
        ("", {"vocab_size": 0}, "other text", "another vocabulary"),
    ],
)
def test_what_cannot_teach_is_refused_in_a_sentence(
    teacher, model, corpus, words, trained, tmp_path
):
    config = config_for(trained, tmp_path / teacher if teacher else trained)
    config = config.with_values("model", **model)
    if corpus:
        path = tmp_path / "corpus.txt"
        path.write_text("Ω" + play.write()[:9000], encoding="utf-8")
        config = config.with_values("data", corpus=str(path))
    with pytest.raises(UserError, match=re.escape(words)):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_folders_are_separated_by_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert teacher_folders("a, /b,") == [tmp_path / "a", Path("/b")]
    assert teacher_folders("") == []


def test_teachers_are_for_pre_training_only():
    config = Config(tune=TuneConfig(objective="rewards", task="sums"))
    with pytest.raises(UserError, match="leave one of them out"):
        make_maker(config.with_values("train", teachers="runs/a"), False)
