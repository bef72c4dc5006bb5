"""Whole runs: what they leave, how they resume bit for bit, what they refuse."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from soak import arrays, log, sample
from support import ROOT

import gpt_jax
from gpt_jax.config.config import Config
from gpt_jax.devices.device_count import start_devices
from gpt_jax.errors import UserError
from gpt_jax.runs.checkpoints import Checkpoints
from gpt_jax.runs.record import read_record
from gpt_jax.text import corpus
from gpt_jax.text.tokenizer_file import load_tokenizer, make_tokenizer, save_tokenizer
from gpt_jax.training import loop, step
from gpt_jax.training.log import read_metrics
from gpt_jax.training.stopping import ALREADY_FINISHED, FINISHED, Stopper


@pytest.fixture
def config(small, text_file):
    """Ten steps on a small text, evaluated and saved after steps 4, 8 and 10."""
    config = small.with_values("model", vocab_size=0).with_values("data", corpus=str(text_file))
    config = config.with_values("train", log_every=2, eval_every=4, checkpoint_every=4)
    return config.with_values("sample", max_new_tokens=20, prompt="The ")


def test_a_run_leaves_what_the_design_names(config, tmp_path, capsys):
    workdir = tmp_path / "runs" / "small run"
    assert loop.train(config, workdir) == FINISHED
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
    assert all(set(entry) - {"val/loss"} == keys for entry in entries)
    with Checkpoints.for_training(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 10
        assert checkpoints.find("latest").val_loss == entries[-1]["val/loss"]
        best = min(entries, key=lambda entry: entry.get("val/loss", np.inf))
        assert checkpoints.find("best").step == best["step"]
    sample = (workdir / "samples" / "10.txt").read_text(encoding="utf-8")
    assert sample.startswith("The ")
    assert len(sample) == len("The ") + 20 + 1
    out = capsys.readouterr().out
    assert re.search(r"step 4/10  train \d\.\d+  val \d\.\d+  [\d,]+ tokens/s  .* left", out)
    assert re.search(r"[\d,]+ parameters, vocabulary \d+", out)
    assert re.search(r"10 steps of 8 x 16 = 128 tokens: 0\.1 epochs; 1 cpu device\(s\)", out)
    assert re.search(r"held-out loss .* bits per byte \(tutorial_estimate \d\.\d+", out)
    assert sample.strip() in out


def test_the_record_leaves_nothing_to_choose(config, tmp_path, text_file):
    config = config.with_values("model", matmul_dtype="auto")
    config = config.with_values("train", microbatch_size=0, steps=2)
    loop.train(config, tmp_path / "run")
    record = read_record(tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer.json")
    assert record.config.model.vocab_size == tokenizer.vocab_size
    assert record.config.model.matmul_dtype in ("float32", "bfloat16")
    assert record.config.train.microbatch_size == 8
    assert record.config.mesh.cpu_devices == record.config.mesh.data == record.devices == 1
    assert record.config.data.corpus == str(text_file)
    assert record.corpus_sha256 == corpus.load_corpus(str(text_file)).sha256


def test_a_finished_run_is_left_alone(config, tmp_path):
    config = config.with_values("train", steps=2)
    assert loop.train(config, tmp_path / "run") == FINISHED
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json*")}
    assert loop.train(config, tmp_path / "run") == ALREADY_FINISHED
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json*")}
    assert before == after


def test_another_configuration_or_text_is_refused(config, tmp_path, text_file):
    config = config.with_values("train", steps=2)
    loop.train(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.n_layer was 1 and is now 2"):
        loop.train(config.with_values("model", n_layer=2), tmp_path / "run")
    longer = config.with_values("train", steps=4)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"steps": 2', '"steps": 4'))
    text_file.write_text("Another text. " * 1000)
    with pytest.raises(UserError, match="has changed since the run"):
        loop.train(longer, tmp_path / "run")


def test_a_deliberate_change_goes_on_and_is_recorded(config, tmp_path):
    """A finished run is extended: the same as a run that was to be so long, up to its schedule."""
    config = config.with_values("optimizer", schedule="constant")
    straight, extended = tmp_path / "straight", tmp_path / "extended"
    loop.train(config, straight)
    loop.train(config.with_values("train", steps=4), extended)
    with pytest.raises(UserError, match=r"is now 10\): .* go on .* --resume_allow=train\.steps"):
        loop.train(config, extended)
    assert loop.train(config, extended, resume_allow=["train.steps"]) == FINISHED
    record = read_record(extended)
    assert record.changes == ({"step": 4, "field": "train.steps", "was": 4, "is": 10},)
    assert record.config == read_record(straight).config
    assert losses(extended) == losses(straight)
    assert loop.train(config, extended) == ALREADY_FINISHED


def losses(workdir):
    return [entry["train/loss"] for entry in read_metrics(workdir / "metrics.jsonl")]


def test_a_run_that_is_not_finite_any_more_stops_and_says_where(config, tmp_path, monkeypatch):
    config = config.with_values("train", max_skipped=3)
    loop.train(config.with_values("train", steps=4), tmp_path / "run")
    monkeypatch.setattr(step, "window_losses", lambda *args: jax.numpy.full(2, np.nan))
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path / "run", resume_allow=["train.steps"])
    assert re.match(
        r"3 steps in a row up to step 7 had a loss or a gradient that is not finite "
        r"\(train.max_skipped = 3\); the windows of the last began at tokens (\d+, ){7}\d+; the "
        r"last good checkpoint is 4: go on",
        str(error.value),
    )
    with Checkpoints.for_reading(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 4


def test_a_run_whose_last_checkpoint_failed_is_not_called_finished(config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr("gpt_jax.runs.checkpoints.shutil.disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"step 2 is not in .*, its save failed: .* step 0"):
            loop.train(config.with_values("train", steps=2), tmp_path / "run")
    assert loop.train(config.with_values("train", steps=2), tmp_path / "run") == FINISHED


def test_a_prompt_outside_the_vocabulary_costs_the_prompt_and_not_the_run(config, tmp_path, capsys):
    config = config.with_values("sample", prompt="東").with_values("train", steps=2)
    assert loop.train(config, tmp_path / "run") == FINISHED
    assert "without sample.prompt" in capsys.readouterr().out
    sample = (tmp_path / "run" / "samples" / "2.txt").read_text(encoding="utf-8")
    assert len(sample) == 20 + 1


def test_without_a_download_the_play_is_used_recorded_and_resumed(
    config, tmp_path, monkeypatch, capsys
):
    def offline():
        raise corpus.DownloadError("no network")

    monkeypatch.setattr(corpus, "_tiny_shakespeare", offline)
    monkeypatch.setattr(corpus.play, "write", lambda: "Once upon a time. " * 500)
    config = config.with_values("data", corpus="tinyshakespeare").with_values("train", steps=2)
    assert loop.train(config, tmp_path / "run") == FINISHED
    assert capsys.readouterr().err.count("no network") == 1
    record = read_record(tmp_path / "run")
    assert (record.config.data.corpus, record.requested_corpus) == ("builtin", "tinyshakespeare")
    (tmp_path / "run" / "samples" / "2.txt").unlink()
    assert loop.train(config, tmp_path / "run") == FINISHED
    assert "no network" not in capsys.readouterr().err


def test_a_run_stopped_before_its_sample_still_gets_it(config, tmp_path, monkeypatch):
    config = config.with_values("train", steps=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "finish", raise_interrupt)
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "samples").exists()
    assert loop.train(config, tmp_path / "run") == FINISHED
    assert (tmp_path / "run" / "samples" / "2.txt").exists()
    assert (tmp_path / "run" / "loss.png").exists()
    assert loop.train(config, tmp_path / "run") == ALREADY_FINISHED


def raise_interrupt(*args):
    raise KeyboardInterrupt


def test_a_run_stopped_between_two_lines_of_its_log_can_end_there_and_not_before(
    config, tmp_path, monkeypatch
):
    """After step 3; there are lines of steps 2 and 4."""
    asked, wait = Stopper(), loop._wait

    def wait_and_ask(metrics):
        wait(metrics)
        asked.signum = signal.SIGINT if int(asked_after.pop()) == 3 else 0

    asked_after = [3, 2, 1]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_wait", wait_and_ask)
        loop.train(config, tmp_path / "run", stopper=asked)
    assert [entry["step"] for entry in log(tmp_path / "run")] == [2]
    allowed = {"resume_allow": ["train.steps"]}
    with pytest.raises(
        UserError, match=r"train\.steps = 2, but the run in .* is at step 3 already"
    ):
        loop.train(config.with_values("train", steps=2), tmp_path / "run", **allowed)
    assert read_record(tmp_path / "run").config.train.steps == 10
    assert loop.train(config.with_values("train", steps=3), tmp_path / "run", **allowed) == FINISHED
    last = log(tmp_path / "run")[-1]
    assert (last["step"], last["train/loss"]) == (3, None)
    assert last["val/loss"] < 4.2
    assert (tmp_path / "run" / "samples" / "3.txt").exists()


def test_a_run_goes_on_with_another_number_of_devices(config, tmp_path, monkeypatch, capsys):
    straight = tmp_path / "straight"
    loop.train(config, straight)
    save = Checkpoints.save

    def save_and_stop(self, *args):
        save(self, *args)
        raise_interrupt()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", save_and_stop)
        loop.train(config, tmp_path / "run")
    two = config.with_values("mesh", cpu_devices=2)
    assert loop.train(two, tmp_path / "run") == FINISHED
    assert "2 cpu device(s)" in capsys.readouterr().out
    losses = [
        [entry["train/loss"] for entry in read_metrics(workdir / "metrics.jsonl")]
        for workdir in (straight, tmp_path / "run")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_on_a_cpu_every_step_is_waited_for(config, tmp_path, monkeypatch):
    """The guard against the hang of overlapping collectives: `_wait` before anything else."""
    waited = []
    original = loop._wait
    monkeypatch.setattr(loop, "_wait", lambda metrics: waited.append(metrics) or original(metrics))
    loop.train(config, tmp_path / "run")
    assert len(waited) == 10


def test_bits_per_byte_count_the_bytes_of_the_text(config, tmp_path, text_file):
    """In a text of two bytes a character a nat per character is half as many bits per byte."""
    text = text_file.read_text(encoding="utf-8")
    text_file.write_text("".join(chr(ord(c) + 0x400) for c in text), encoding="utf-8")
    devices = start_devices(config.mesh, config.train.batch_size)
    for kind, expected in (("char", 0.5 / np.log(2)), ("byte", 1 / np.log(2))):
        kind_config = config.with_values("data", tokenizer=kind)
        run = loop.prepare(kind_config, tmp_path / kind, None, devices)
        assert run.bits_per_byte(1.0) == pytest.approx(expected)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"model\.vocab_size = 7, but the tokenizer has"):
        loop.train(config.with_values("model", vocab_size=7), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_larger_vocabulary_pads_the_tables_and_nobody_draws_what_is_padded(config, tmp_path):
    """After two steps all ids are about as likely: of 8 texts of 40 tokens some would be padded."""
    config = config.with_values("model", vocab_size=128).with_values("train", steps=2)
    assert loop.train(config, tmp_path / "run") == FINISHED
    run = gpt_jax.load(tmp_path / "run")
    assert run.config.model.vocab_size == 128 > run.tokenizer.vocab_size
    assert run.params["wte"]["embedding"].shape[0] == 128
    texts = run.generate_batch("The ", 8, max_new_tokens=40, top_k=0, temperature=2.0)
    assert [len(text) for text in texts] == [44] * 8
    chances = run.next_token("The ")
    assert len(chances) == run.tokenizer.vocab_size
    assert sum(chance for _, chance in chances) == pytest.approx(1)
    assert (
        loop.train(
            config.with_values("train", steps=3), tmp_path / "run", resume_allow=["train.steps"]
        )
        == FINISHED
    )


@pytest.mark.parametrize("local", [False, True])
def test_byte_pairs_are_tokens_too(config, tmp_path, monkeypatch, text_file, local):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    text = text_file.read_text(encoding="utf-8")
    training_part = text[: int(len(text) * 0.9)]
    tokenizer = make_tokenizer("bpe", [training_part], 300)
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


def test_bytes_are_tokens_too(config, tmp_path):
    config = config.with_values("data", tokenizer="byte").with_values("train", steps=2)
    assert loop.train(config, tmp_path / "run") == FINISHED
    assert read_record(tmp_path / "run").config.model.vocab_size == 256


# A run that dies right behind its checkpoint of step 5, as by kill -9: nothing is closed.
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


def script(workdir, text_file, *extra, code=None):
    """Runs scripts/train.py in a process of its own: 10 steps, dropout on, two devices."""
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
    # As in a user's process: compiled anew, and with every optimisation.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": ""}
    return subprocess.run(
        [*command, *extra],
        capture_output=True,
        text=True,
        cwd=ROOT / "scripts",
        env=environment,
        timeout=300,
    )


def test_ten_steps_are_five_and_five_after_a_kill_bit_for_bit(tmp_path, text_file):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = script(straight, text_file)
    assert done.returncode == 0, done.stderr
    assert script(broken, text_file, code=KILLED).returncode == 9
    assert [path.name for path in (broken / "checkpoints").iterdir()] == ["5"]
    resumed = script(broken, text_file)
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on after step 5" in resumed.stdout

    assert arrays(broken) == arrays(straight)
    assert log(broken) == log(straight)
    assert [entry["step"] for entry in log(broken)] == list(range(1, 11))
    assert sample(broken) == sample(straight)
    sampled = subprocess.run(  # In a process that has one device and not two.
        [sys.executable, ROOT / "scripts" / "sample.py", f"--workdir={straight}"],
        capture_output=True,
        text=True,
    )
    assert (sampled.returncode, len(sampled.stdout) > 0) == (0, True), sampled.stderr
    record = json.loads((straight / "config.json").read_text())
    assert Config.from_dict(record["config"]).model.dropout > 0
    assert record["devices"]["count"] == 2
