"""Whole runs: what they write, how they resume bit for bit, what they refuse."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from soak import arrays, log, samples
from steps import share_steps
from support import ROOT

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.devices.device_count import start_devices
from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import read_record
from gpt_jax.text import corpus, play
from gpt_jax.text.tokenizer_file import load_tokenizer, make_tokenizer, save_tokenizer
from gpt_jax.training import loop, objective, step
from gpt_jax.training import run as run_module
from gpt_jax.training.log import MetricsLog, read_metrics
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED, Stop, Stopper

TEXT = play.write()[:4000]


@pytest.fixture(autouse=True)
def shared_steps(monkeypatch):
    """Runs share their compiled steps."""
    share_steps(monkeypatch)


def config_for(small, text_file):
    """Ten steps on a small text, evaluated and saved after steps 4, 8 and 10."""
    config = small.with_values("model", vocab_size=0).with_values("data", corpus=str(text_file))
    config = config.with_values("train", log_every=2, eval_every=4, checkpoint_every=4)
    # With a constant learning rate, a run of more steps begins as one of fewer does.
    config = config.with_values("optimizer", schedule="constant")
    return config.with_values("sample", max_new_tokens=20, prompt="The ")


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def config(small, text_file):
    return config_for(small, text_file)


class Example(NamedTuple):
    """A run made once for several tests, which must not change it."""

    config: Config
    workdir: os.PathLike
    out: str
    waits: int  # How often it waited for a step.

    def copy(self, folder):
        """A copy of the run, without the samples that mark it as finished."""
        return shutil.copytree(self.workdir, folder, ignore=shutil.ignore_patterns("samples"))


def example(tmp_path_factory, small, last=None):
    """Trains a run; it gets a signal after step `last`."""
    folder, stopper, waits = tmp_path_factory.mktemp("example"), Stopper(), []
    (folder / "corpus.txt").write_text(TEXT, encoding="utf-8")
    config, wait = config_for(small, folder / "corpus.txt"), loop._wait

    def wait_and_stop(metrics):
        waits.append(metrics)
        stopper.signum = signal.SIGTERM if len(waits) == last else 0
        wait(metrics)

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        share_steps(patch)
        patch.setattr(loop, "_wait", wait_and_stop)
        stop = loop.train(config, folder / "runs" / "small run", stopper=stopper)
    assert stop == (Stop("SIGTERM", 143) if last else FINISHED)
    return Example(config, folder / "runs" / "small run", out.getvalue(), len(waits))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small):
    return example(tmp_path_factory, small)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, small):
    """A run stopped after step 4 of 10."""
    return example(tmp_path_factory, small, last=4)


def losses(workdir):
    return [entry["train/loss"] for entry in read_metrics(workdir / "metrics.jsonl")]


def test_a_run_writes_the_files_of_the_design(finished):
    workdir = finished.workdir
    assert {path.name for path in workdir.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "loss.png",
        "samples",
        "checkpoints",
    }
    entries = read_metrics(workdir / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10]
    assert [entry["step"] for entry in entries if "val/loss" in entry] == [4, 8, 10]
    keys = {"step", "train/loss", "lr", "grad_norm", "tokens_per_s", "elapsed_s"}
    evaluated = {"val/loss", "val/bits_per_byte"}
    assert all(set(entry) - evaluated == keys for entry in entries)
    for entry in entries:  # The text is ASCII and its tokens are characters.
        bits = entry.get("val/loss", 0) / math.log(2)
        assert entry.get("val/bits_per_byte", 0) == pytest.approx(bits)
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 10
        assert checkpoints.find("latest").val_loss == entries[-1]["val/loss"]
        best = min(entries, key=lambda entry: entry.get("val/loss", np.inf))
        assert checkpoints.find("best").step == best["step"]


def test_a_run_prints_what_it_trains_its_losses_and_a_sample(finished):
    text = (finished.workdir / "samples" / "10.txt").read_text(encoding="utf-8")
    assert text.startswith("The ")
    assert len(text) == len("The ") + 20 + 1
    assert text.strip() in finished.out
    assert re.search(r"model +[\d,]+ parameters: 1 blocks x 2 heads x width 16", finished.out)
    assert re.search(r"steps +10 of 8 x 16 = 128 tokens: 0\.4 epochs", finished.out)
    assert re.search(r"devices +1 x cpu", finished.out)
    assert re.search(r"\n +4 +\d\.\d{4} +\d\.\d{4} ", finished.out)
    assert re.search(r"\nresult +validation loss \d\.\d{4} nats per token, ", finished.out)
    assert "tutorial_estimate" not in finished.out


def test_on_a_cpu_the_run_waits_for_every_step(finished):
    """Overlapping collectives would hang: see `loop._wait`."""
    assert finished.waits == 10


def test_the_record_leaves_no_choice_open(config, tmp_path, text_file):
    config = config.with_values("model", matmul_dtype="auto")
    config = config.with_values("train", microbatch_size=0)
    devices = start_devices(config.mesh, config.train.batch_size)
    loop.prepare(config, tmp_path / "run", None, devices)
    record = read_record(tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer.json")
    assert record.config.model.vocab_size == tokenizer.vocab_size
    assert record.config.model.matmul_dtype in ("float32", "bfloat16")
    assert record.config.train.microbatch_size == 8
    assert record.config.mesh.cpu_devices == record.config.mesh.data == record.devices == 1
    assert record.config.data.corpus == str(text_file)
    assert record.corpus_sha256 == corpus.load_corpus(str(text_file)).sha256


def test_a_finished_run_is_left_alone(finished):
    files = [path for path in finished.workdir.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert loop.train(finished.config, finished.workdir) == ALREADY_FINISHED
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_configuration_is_refused(finished):
    with pytest.raises(UserError, match=r"model\.n_layer was 1 and is now 2"):
        loop.train(finished.config.with_values("model", n_layer=2), finished.workdir)


def test_a_changed_text_is_refused(stopped, tmp_path, text_file):
    workdir = stopped.copy(tmp_path / "run")
    text_file.write_text("Another text. " * 1000)
    with pytest.raises(UserError, match="is not the one with which the run"):
        loop.train(stopped.config.with_values("data", corpus=str(text_file)), workdir)


def test_an_allowed_change_is_recorded_and_a_longer_run_equals_a_straight_one(finished, tmp_path):
    config, extended = finished.config, tmp_path / "extended"
    loop.train(config.with_values("train", steps=4), extended)
    with pytest.raises(
        UserError, match=r"is now 10\): .* resume this one with --resume_allow=train\.steps"
    ):
        loop.train(config, extended)
    assert loop.train(config, extended, resume_allow=["train.steps"]) == FINISHED
    record = read_record(extended)
    assert record.changes == ({"step": 4, "field": "train.steps", "was": 4, "is": 10},)
    assert record.config == read_record(finished.workdir).config
    assert losses(extended) == losses(finished.workdir)
    assert loop.train(config, extended) == ALREADY_FINISHED


def test_a_run_that_stays_not_finite_ends_and_names_step_windows_and_checkpoint(
    stopped, tmp_path, monkeypatch
):
    workdir, config = stopped.copy(tmp_path / "run"), stopped.config
    monkeypatch.setattr(run_module, "jit_train_step", step.jit_train_step)
    nan_losses = staticmethod(lambda *args: (jax.numpy.full(2, np.nan), {}))
    monkeypatch.setattr(objective.Language, "losses", nan_losses)
    with pytest.raises(UserError) as error:
        loop.train(config.with_values("train", max_skipped=3), workdir)
    assert re.match(
        r"3 steps in a row up to step 7 had a loss or a gradient that is not finite "
        r"\(train.max_skipped = 3\); the windows of the last step began at tokens (\d+, ){7}\d+; "
        r"the last good checkpoint is 4: resume from it",
        str(error.value),
    )
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 4


def test_a_run_whose_last_save_fails_is_not_finished(stopped, tmp_path, monkeypatch):
    workdir = stopped.copy(tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr("gpt_jax.runs.checkpoint_files.shutil.disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"step 10 is not in .* its save failed: .* step 4"):
            loop.train(stopped.config, workdir)
    assert loop.train(stopped.config, workdir) == FINISHED


def test_a_prompt_outside_the_vocabulary_is_left_out_of_the_sample(finished, tmp_path, capsys):
    workdir = finished.copy(tmp_path / "run")
    assert loop.train(finished.config.with_values("sample", prompt="東"), workdir) == FINISHED
    assert "the vocabulary lacks a character of sample.prompt" in capsys.readouterr().out
    assert len((workdir / "samples" / "10.txt").read_text(encoding="utf-8")) == 20 + 1


def test_a_run_whose_download_fails_says_at_every_start_and_end_that_it_trains_on_the_play(
    config, tmp_path, monkeypatch, capsys
):
    def offline():
        raise corpus.DownloadError("no network")

    monkeypatch.setattr(corpus.play, "write", lambda: "Once upon a time. " * 100)
    monkeypatch.setattr(corpus.play, "source_loss", lambda start: 0.5)
    config = config.with_values("data", corpus="tinyshakespeare")
    sentence = "this run trains on the built-in play, because Tiny Shakespeare could not be"
    monkeypatch.setattr(corpus, "_tiny_shakespeare", offline)
    assert loop.train(config, tmp_path / "run") == FINISHED
    told = capsys.readouterr()
    assert told.err.count("no network") == 1
    assert " ".join(told.out.split()).count(f"note: {sentence}") == 1
    record = read_record(tmp_path / "run")
    assert (record.config.data.corpus, record.requested_corpus) == ("builtin", "tinyshakespeare")
    monkeypatch.setattr(corpus, "_tiny_shakespeare", lambda: "To be, or not to be. " * 100)
    longer = config.with_values("train", steps=12)
    assert loop.train(config, tmp_path / "run") == ALREADY_FINISHED
    assert loop.train(longer, tmp_path / "run", resume_allow=["train.steps"]) == FINISHED
    told = capsys.readouterr()
    assert told.err.count(f"note: {sentence}") == 2
    assert told.err.count("start a new run with another --workdir") == 2
    assert loop.train(config, tmp_path / "new") == FINISHED
    assert "play" not in "".join(capsys.readouterr())


def test_a_run_stopped_between_two_lines_of_its_log_can_end_there_but_not_earlier(
    tmp_path_factory, small
):
    """It stops after step 3. The log has lines of steps 2 and 4."""
    run = example(tmp_path_factory, small, last=3)
    assert [entry["step"] for entry in log(run.workdir)] == [2]
    allowed = {"resume_allow": ["train.steps"]}
    with pytest.raises(
        UserError, match=r"train\.steps = 2, but the run in .* is already at step 3"
    ):
        loop.train(run.config.with_values("train", steps=2), run.workdir, **allowed)
    assert read_record(run.workdir).config.train.steps == 10
    assert loop.train(run.config.with_values("train", steps=3), run.workdir, **allowed) == FINISHED
    last = log(run.workdir)[-1]
    assert (last["step"], last["train/loss"]) == (3, None)
    assert last["val/loss"] < 4.2
    assert (run.workdir / "samples" / "3.txt").exists()


def test_a_run_resumes_on_another_number_of_devices(finished, stopped, tmp_path, capsys):
    workdir = stopped.copy(tmp_path / "run")
    assert loop.train(stopped.config.with_values("mesh", cpu_devices=2), workdir) == FINISHED
    assert "2 x cpu" in capsys.readouterr().out
    np.testing.assert_allclose(losses(workdir), losses(finished.workdir), rtol=1e-5)


def test_bits_per_byte_count_the_bytes_of_the_text(config, tmp_path, text_file):
    """If a character has two bytes, a nat per character is half as many bits per byte."""
    text_file.write_text("".join(chr(ord(c) + 0x400) for c in TEXT), encoding="utf-8")
    devices = start_devices(config.mesh, config.train.batch_size)
    for kind, expected in (("char", 0.5 / np.log(2)), ("byte", 1 / np.log(2))):
        kind_config = config.with_values("data", tokenizer=kind)
        run = loop.prepare(kind_config, tmp_path / kind, None, devices)
        assert run.bits_per_byte(1.0) == pytest.approx(expected)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"model\.vocab_size = 7, but the tokenizer has"):
        loop.train(config.with_values("model", vocab_size=7), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_larger_vocabulary_pads_the_tables_and_padding_is_never_drawn(config, tmp_path):
    """In a new model all ids are about equally likely: 8 texts of 40 would have padding."""
    config = config.with_values("model", vocab_size=128).with_values("train", steps=0)
    assert loop.train(config, tmp_path / "run") == FINISHED
    run = gpt_jax.load(tmp_path / "run")
    assert run.config.model.vocab_size == 128 > run.tokenizer.vocab_size
    assert run.params["wte"]["embedding"].shape[0] == 128
    texts = run.generate_batch("The ", 8, max_new_tokens=40, top_k=0, temperature=2.0)
    assert [len(text) for text in texts] == [44] * 8
    chances = run.next_token("The ")
    assert len(chances) == run.tokenizer.vocab_size
    assert sum(chance for _, chance in chances) == pytest.approx(1)
    (tmp_path / "run" / "samples" / "0.txt").unlink()
    assert loop.train(config, tmp_path / "run") == FINISHED


@pytest.mark.parametrize("local", [False, True])
def test_a_run_with_byte_pairs_trains_loads_and_samples(config, tmp_path, monkeypatch, local):
    """The tokenizer is made from the training text, or read from a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    tokenizer = make_tokenizer("bpe", [TEXT[: int(len(TEXT) * 0.9)]], 300)
    save_tokenizer(tokenizer, tmp_path / "gpt2" / "tokenizer.json")
    config = config.with_values("data", tokenizer="gpt2" if local else "bpe", bpe_vocab_size=300)
    config = config.with_values("train", steps=2)
    assert loop.train(config, tmp_path / "run") == FINISHED
    assert loop.train(config, tmp_path / "run") == ALREADY_FINISHED
    run = gpt_jax.load(tmp_path / "run")
    assert run.config.model.vocab_size == 300
    assert run.config.data.tokenizer == (str(tmp_path / "gpt2") if local else "bpe")
    assert run.tokenizer.to_dict() == tokenizer.to_dict()
    assert run.generate("The ", max_new_tokens=20).startswith("The ")


def test_a_run_with_bytes_has_256_ids(config, tmp_path):
    config = config.with_values("data", tokenizer="byte").with_values("train", steps=0)
    assert loop.train(config, tmp_path / "run") == FINISHED
    assert read_record(tmp_path / "run").config.model.vocab_size == 256


# A run that dies right after its checkpoint of step 5, as by kill -9: nothing is closed.
KILLED = """
import os, sys
from gpt_jax.runs.checkpoints import Checkpoints
import train
save = Checkpoints.save
def save_and_die(self, step, *rest):
    save(self, step, *rest)
    self.wait()
    os._exit(9)
Checkpoints.save = save_and_die
train.main(sys.argv)
"""


def script(workdir, text_file, code=None, uses_cache=True):
    """Runs scripts/train.py in its own process: 10 steps, dropout on, two devices.

    XLA optimises as for a user. `uses_cache`: whether compiled programs may come from the cache.
    """
    flags = {
        "model.block_size": 16,
        "model.n_layer": 1,
        "model.n_embd": 16,
        "data.corpus": text_file,
        "optimizer.warmup_steps": 2,
        "train.steps": 10,
        "train.batch_size": 8,
        "train.microbatch_size": 2,
        "train.log_every": 1,
        "train.eval_every": 5,
        "train.checkpoint_every": 5,
        "mesh.cpu_devices": 2,
        "sample.max_new_tokens": 5,
    }
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / "scripts" / "train.py")])]
    command += [f"--workdir={workdir}", f"--config={ROOT / 'configs' / 'tiny.py'}"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    environment = {"JAX_ENABLE_COMPILATION_CACHE": str(uses_cache), "XLA_FLAGS": ""}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT / "scripts",
        env=os.environ | environment,
        timeout=300,
    )


def test_ten_steps_are_five_and_five_after_a_kill_bit_for_bit(tmp_path, text_file):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = script(straight, text_file)
    assert done.returncode == 0, done.stderr
    assert script(broken, text_file, code=KILLED).returncode == 9
    assert [path.name for path in (broken / "checkpoints").iterdir()] == ["5"]
    resumed = script(broken, text_file, uses_cache=False)  # Compiles again: the bits stay.
    assert resumed.returncode == 0, resumed.stderr
    assert "after step 5" in resumed.stdout

    assert arrays(broken) == arrays(straight)
    assert log(broken) == log(straight)
    assert [entry["step"] for entry in log(broken)] == list(range(1, 11))
    assert samples(broken) == samples(straight)
    sampled = subprocess.run(  # In a process with one device instead of two.
        [sys.executable, ROOT / "scripts" / "sample.py", f"--workdir={straight}"],
        capture_output=True,
        text=True,
    )
    assert (sampled.returncode, len(sampled.stdout) > 0) == (0, True), sampled.stderr
    record = json.loads((straight / "config.json").read_text())
    assert Config.from_dict(record["config"]).model.dropout > 0
    assert record["devices"]["count"] == 2


def test_the_log_is_flushed_before_each_checkpoint(config, tmp_path, monkeypatch):
    """After a power cut a checkpoint must not be ahead of the log: its lines would be missing."""
    done = []

    def noting(what, original):
        def noted(*args, **kwargs):
            done.append(what)
            return original(*args, **kwargs)

        return noted

    monkeypatch.setattr(MetricsLog, "append", noting("line", MetricsLog.append))
    monkeypatch.setattr(MetricsLog, "flush", noting("flush", MetricsLog.flush))
    monkeypatch.setattr(Checkpoints, "save", noting("save", Checkpoints.save))
    assert loop.train(config, tmp_path / "run") == FINISHED
    saves = [i for i, what in enumerate(done) if what == "save"]
    assert len(saves) == 3
    assert all(done[i - 1] == "flush" for i in saves)
