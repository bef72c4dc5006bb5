"""evaluate.py: the losses of the log, a table or JSON, and bad input."""

import json
import math
import re
import shutil

import evaluate
import jax
import pytest

from gpt_jax.config.config import Config
from gpt_jax.text import corpus, play
from gpt_jax.training import evaluation, loop
from gpt_jax.training.log import read_metrics


@pytest.fixture
def run(trained, capsys):
    def call(*flags, workdir=trained):
        status = evaluate.main(["scripts/evaluate.py", f"--workdir={workdir}", *flags])
        return status, *capsys.readouterr()

    return call


def test_json_has_the_losses_of_the_log(run, trained):
    log = {
        entry["step"]: entry.get("val/loss") for entry in read_metrics(trained / "metrics.jsonl")
    }
    for step, flags in ((200, []), (200, ["--step=latest"]), (100, ["--step=best"])):
        status, out, err = run("--json", *flags)
        assert err == f"evaluating {trained}\n{trained}, step {step}\n"
        found = json.loads(out)
        assert (status, found["step"]) == (0, step)
        # Another layout over devices sums in another order.
        assert found["loss"] == pytest.approx(log[step], rel=1e-6)
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
        assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))  # ASCII
        assert found["tokens"] == 124 * 16
        assert found["source_loss"] is None
        assert 0 < found["tutorial_estimate"] < math.log(99)


def test_without_json_it_prints_a_table(run, trained):
    _, out, _ = run()
    loss = json.loads(run("--json")[1])["loss"]
    corpus = trained.parent.parent / "corpus.txt"
    assert f"step 200, validation text: the end of {corpus}\n" in out
    assert re.search(rf"loss +{loss:.4f} +nats per token, over 1,984 tokens", out)
    assert re.search(r"bits per byte +\d\.\d{4}.*\n +perplexity +\d+\.\d{4}", out)
    assert "entropy of the play" not in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_the_entropy_of_the_play_is_printed(small, tmp_path, run):
    config = small.with_values("model", vocab_size=0, block_size=64)
    config = config.with_values("data", corpus="builtin", val_fraction=0.01)
    loop.train(config.with_values("train", steps=2), tmp_path / "run")
    status, out, _ = run("--json", workdir=tmp_path / "run")
    first = int(len(corpus.load_corpus("builtin").text) * 0.99)
    assert status == 0
    assert json.loads(out.splitlines()[-1])["source_loss"] == play.source_loss(first)
    assert "entropy of the play" in run(workdir=tmp_path / "run")[1]


def test_a_corpus_that_is_gone_or_another_is_an_error_that_names_the_flag(trained, tmp_path, run):
    status, out, err = run(f"--corpus={tmp_path / 'gone.txt'}")
    assert (status, out) == (2, "")
    assert re.search(r"\nerror: data\.corpus = .*gone\.txt' matches no text .* --corpus\)\n$", err)
    (tmp_path / "other.txt").write_text("another text " * 1000, encoding="utf-8")
    status, out, err = run(f"--corpus={tmp_path / 'other.txt'}")
    assert (status, out) == (2, "")
    assert re.search(r"\nerror: the text at .*other\.txt is not .* --corpus\), or .*\n$", err)


def test_a_corpus_that_moved_is_evaluated_where_it_is_now(trained, tmp_path, monkeypatch, run):
    """The run itself is elsewhere, too, and stays as it is."""
    copy = shutil.copytree(trained, tmp_path / "run")
    shutil.copy(trained.parent.parent / "corpus.txt", tmp_path / "renamed.txt")
    monkeypatch.chdir(tmp_path)
    before = (copy / "config.json").read_bytes()
    status, out, _ = run("--json", "--corpus=renamed.txt", workdir=copy)
    found = json.loads(out)
    assert (status, found["corpus"]) == (0, str(tmp_path / "renamed.txt"))
    assert found["loss"] == json.loads(run("--json")[1])["loss"]
    assert (copy / "config.json").read_bytes() == before


def test_an_edited_run_is_refused(trained, tmp_path, run):
    copy = shutil.copytree(trained, tmp_path / "run")
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"val_fraction": 0.1', '"val_fraction": 0.2'))
    status, out, err = run(workdir=copy)
    assert (status, out) == (2, "")
    assert re.search(r"\nerror: .*config\.json is not what the run wrote: [^\n]+\n$", err)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--step=7"], "no step '7': the steps are 100 and 200; give"),
        (["--jason"], "jason.*json"),
        (["runs/tiny"], "'runs/tiny' is not a flag"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(run, flags, words):
    status, out, err = run(*flags)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"(evaluating .*\n)?error: [^\n]+\n", err), err
    assert re.search(words, err)


def test_a_folder_without_a_run_or_a_checkpoint_is_an_error(run, tmp_path, trained):
    assert re.search(r"error: .*nothing holds no run .*\n", run(workdir=tmp_path / "nothing")[2])
    copy = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    assert re.search(r"error: .* holds no checkpoint: train first.*\n", run(workdir=copy)[2])


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 12), (5, 15), (8, 16)])
def test_a_batch_grows_until_the_devices_share_it_evenly(devices, batch_size):
    """Another machine may have a number of devices that does not divide the run's batch."""
    config = Config().with_values("train", batch_size=12, microbatch_size=4)
    fitted = evaluation._fitted(config, jax.devices()[:devices])
    assert fitted.train.batch_size == batch_size
