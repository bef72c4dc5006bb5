"""Runs that begin from another run: what they take from it, and what they refuse."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tuned
from steps import share_steps

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.errors import UserError
from gpt_jax.runs.record import read_record
from gpt_jax.text import NO_CORPUS, CharTokenizer, play, save_tokenizer
from gpt_jax.training import loop
from gpt_jax.training.log import read_metrics
from gpt_jax.training.origin import open_origin
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED

MODEL = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 8, "matmul_dtype": "float32"}


@pytest.fixture(autouse=True)
def shared_steps(monkeypatch):
    """Runs share their compiled steps."""
    share_steps(monkeypatch)


def make_config(path, **sections):
    values = {
        "data": {"corpus": str(path)},
        "optimizer": {"warmup_steps": 2},
        "train": {"steps": 4, "batch_size": 8, "eval_every": 2, "checkpoint_every": 2},
        "model": {"matmul_dtype": "float32"},
        "sample": {"prompt": "The ", "max_new_tokens": 5},
        "mesh": {"cpu_devices": 2},
    }
    return Config.from_dict({name: values.get(name, {}) | sections.get(name, {})
                             for name in {*values, *sections}})  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two texts with the same characters."""
    folder, speeches = tmp_path_factory.mktemp("texts"), play.write()
    characters = "".join(sorted(set(speeches)))
    for name, text in (("first", speeches[:9000]), ("second", speeches[9000:18_000])):
        (folder / f"{name}.txt").write_text(characters + text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def source(texts, tmp_path_factory):
    """A finished run with an average, scanned blocks and two checkpoints. Nobody may change it."""
    model, optimizer = MODEL | {"scan_layers": True}, {"warmup_steps": 2, "average_decay": 0.5}
    config = make_config(texts / "first.txt", model=model, optimizer=optimizer)
    workdir = tmp_path_factory.mktemp("source") / "run"
    first, kept = workdir / "checkpoints" / "2", workdir.parent / "2"
    assert loop.train(config.with_values("train", steps=2), workdir) == FINISHED
    shutil.copytree(first, kept)
    assert loop.train(config, workdir, resume_allow=["train.steps"]) == FINISHED
    if not first.exists():  # Retention has removed it if step 4 is better.
        shutil.copytree(kept, first)
    return workdir


def check_params_equal(workdir, step, source, source_step):
    ours, theirs = gpt_jax.load(workdir, step).params, gpt_jax.load(source, source_step).params
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_run_begins_with_the_best_checkpoint_of_another_and_its_shape(texts, source, tmp_path):
    config = make_config(texts / "second.txt")
    assert loop.train(config, tmp_path / "run", init_from=str(source)) == FINISHED
    record = read_record(tmp_path / "run")
    best = gpt_jax.load(source).step
    assert (record.init_from, record.init_step) == (str(source), best)
    assert record.init_sha256 == open_origin(source).sha256
    c, theirs = record.config.model, read_record(source).config.model
    assert c == dataclasses.replace(theirs, scan_layers=False, dropout=c.dropout)
    assert record.config.data.corpus == str(texts / "second.txt")
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [entry["step"] for entry in entries if "val/loss" in entry] == [0, 2, 4]


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("which", ["best", "2", "latest"])
def test_a_run_of_no_steps_has_the_arrays_of_the_chosen_checkpoint(
    texts, source, tmp_path, which, scan_layers
):
    """Those that are evaluated: the average, if there is one."""
    config = make_config(texts / "second.txt", model={"scan_layers": scan_layers})
    config = config.with_values("train", steps=0)
    loop.train(config, tmp_path / "run", init_from=str(source), init_step=which)
    check_params_equal(tmp_path / "run", 0, source, which)


def test_the_run_resumes_without_the_other_one(texts, source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    config = make_config(texts / "second.txt")
    loop.train(config.with_values("train", steps=2), tmp_path / "run", init_from=str(copy))
    loop.train(config, tmp_path / "straight", init_from=str(copy))
    shutil.rmtree(copy)
    stop = loop.train(config, tmp_path / "run", resume_allow=["train.steps"])
    assert stop == FINISHED
    assert loop.train(config, tmp_path / "run", init_from=str(copy)) == ALREADY_FINISHED


def test_another_beginning_is_refused(texts, source, tmp_path):
    config = make_config(texts / "second.txt").with_values("train", steps=0)
    loop.train(config, tmp_path / "run", init_from=str(source))
    step = read_record(tmp_path / "run").init_step
    with pytest.raises(UserError, match=f"began from step {step} of .*leave out --init_step=0"):
        loop.train(config, tmp_path / "run", init_from=str(source), init_step="0")
    with pytest.raises(UserError, match="not from /other: leave out --init_from"):
        loop.train(config, tmp_path / "run", init_from="/other")


def test_a_shape_or_a_text_that_does_not_fit_is_refused_and_nothing_is_written(
    texts, source, tmp_path
):
    wider = make_config(texts / "second.txt", model={"n_embd": 16})
    with pytest.raises(UserError, match="n_embd = 16 instead of 8"):
        loop.train(wider, tmp_path / "run", init_from=str(source))
    (tmp_path / "text.txt").write_text("ß" * 1000, encoding="utf-8")
    with pytest.raises(UserError, match="'ß'"):
        loop.train(make_config(tmp_path / "text.txt"), tmp_path / "run", init_from=str(source))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("which", "message"),
    [("3", "has no step '3': the steps are 2 and 4"), ("x", "has no step 'x'")],
)
def test_a_checkpoint_that_is_not_there_is_refused(source, which, message):
    with pytest.raises(UserError, match=message):
        open_origin(source, which)


def test_an_edited_or_empty_run_is_refused(source, tmp_path):
    edited = shutil.copytree(source, tmp_path / "edited")
    content = json.loads((edited / "config.json").read_text())
    content["config"]["model"]["activation"] = "relu2"
    (edited / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json is not what the run wrote"):
        open_origin(edited)
    empty = shutil.copytree(source, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    with pytest.raises(UserError, match="checkpoint"):
        open_origin(empty)


def test_arrays_that_changed_after_the_record_are_refused(texts, source, tmp_path, monkeypatch):
    """The run was killed before its first save; meanwhile the other one was trained anew."""
    config, copy = make_config(texts / "second.txt"), shutil.copytree(source, tmp_path / "copy")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, tmp_path / "run", init_from=str(copy))
    metadata = copy / "checkpoints" / str(gpt_jax.load(copy).step) / "_CHECKPOINT_METADATA"
    content = json.loads(metadata.read_text())
    content["custom_metadata"]["digests"]["step"] += 1
    metadata.write_text(json.dumps(content))
    with pytest.raises(UserError, match="are not those that the run began with"):
        loop.train(config, tmp_path / "run", init_from=str(copy))


def test_a_step_of_gpt2s_weights_is_refused():
    from support import GPT2_TINY

    with pytest.raises(UserError, match="--init_step=2 chooses a checkpoint of a run"):
        open_origin(GPT2_TINY, "2")


def tuned_from(origin, workdir, tune, **sections):
    config = tuned.make_config(tune, **{"train": {"steps": 0}, **sections})
    assert tuned.train(config, workdir, origin) == FINISHED
    return read_record(workdir)


def test_a_tuned_run_takes_shape_tokenizer_corpus_and_template_from_its_origin(
    tmp_path_factory, tmp_path
):
    """Its corpus only tells what tuning costs."""
    base, path = tuned.pretrained(tmp_path_factory), tmp_path / "own.json"
    own = {"system": ["", ""], "user": ["", ""], "assistant": ["0", "\n"]}
    path.write_text(json.dumps(own))
    tune = tuned.INSTRUCTIONS | {"template": str(path)}
    first = tuned_from(base, tmp_path / "first", tune)
    second = tuned_from(tmp_path / "first", tmp_path / "second", tuned.REWARDS)
    for record, origin in ((first, base), (second, tmp_path / "first")):
        assert record.init_from == str(origin)
        assert record.config.data.corpus == read_record(base).config.data.corpus
        assert record.config.data.tokenizer == str(origin / "tokenizer.json")
        assert record.template == own
        check_params_equal(tmp_path / "second", 0, origin, "best")


def test_pre_training_goes_on_from_a_tuned_run_and_completes_text_again(tmp_path_factory, tmp_path):
    origin = tuned.instructed(tmp_path_factory)
    corpus = read_record(tuned.pretrained(tmp_path_factory)).config.data.corpus
    record = tuned_from(origin, tmp_path / "run", {}, data={"corpus": corpus})
    assert record.template is None
    check_params_equal(tmp_path / "run", 0, origin, "best")
    with pytest.raises(UserError, match="was not tuned to answer"):
        gpt_jax.load(tmp_path / "run").answer("1+1=")


@pytest.mark.parametrize(
    ("characters", "words"),
    [
        ("\n+012345678=x", "the tokenizer of .* is not that of the run in"),  # As many.
        ("\n+012345678=", "the tokenizer of .* is not that of the run in"),
        ("\n+0123456789=x", "the tokenizer has 14 tokens, but the weights of .* only 13"),
    ],
)
def test_another_tokenizer_is_refused_whatever_its_size(tmp_path, characters, words):
    """Also where no corpus holds a character that it lacks."""
    tuned_from("", tmp_path / "origin", tuned.INSTRUCTIONS)
    path = tmp_path / "tokenizer.json"
    save_tokenizer(CharTokenizer(characters), path)
    with pytest.raises(UserError, match=words):
        tuned_from(tmp_path / "origin", tmp_path / "run", tuned.INSTRUCTIONS,
                   data={"tokenizer": str(path)})  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_run_without_an_origin_and_a_corpus_is_tuned_with_the_tasks_own_characters(tmp_path):
    record = tuned_from("", tmp_path / "run", tuned.INSTRUCTIONS)
    assert (record.init_from, record.config.data.corpus) == ("", NO_CORPUS)
    model = gpt_jax.load(tmp_path / "run")
    assert model.tokenizer.characters == "\n+0123456789="
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert "val/loss" in entries[-1] and "val/corpus_loss" not in entries[-1]
    tuned_from(tmp_path / "run", tmp_path / "next", tuned.REWARDS)
    check_params_equal(tmp_path / "next", 0, tmp_path / "run", "best")
