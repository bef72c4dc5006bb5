"""prepare.py: preparing a text, training on it, and bad input."""

import json
import shutil

import evaluate
import numpy as np
import prepare
import pytest
import train
from support import GPT2_TINY, ROOT

from gpt_jax.text import play
from gpt_jax.training.log import read_metrics

SHORT = {
    "model.block_size": 16,
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 16,
    "optimizer.warmup_steps": 2,
    "train.steps": 4,
    "train.batch_size": 8,
    "mesh.cpu_devices": 1,
    "sample.max_new_tokens": 5,
}


@pytest.fixture
def script(capsys):
    def call(*flags):
        status = prepare.main(["scripts/prepare.py", *map(str, flags)])
        return status, *capsys.readouterr()

    return call


def train_on(corpus, workdir, *flags):
    words = [f"--config.{name}={value}" for name, value in SHORT.items()]
    words += [f"--config.data.corpus={corpus}", f"--workdir={workdir}", *flags]
    return train.main(["scripts/train.py", f"--config={ROOT / 'configs' / 'tiny.py'}", *words])


def losses(workdir):
    return [entry["train/loss"] for entry in read_metrics(workdir / "metrics.jsonl")]


def test_a_run_on_a_prepared_corpus_is_the_run_on_its_text(script, text_file, tmp_path, capsys):
    out = tmp_path / "out"
    status, told, _ = script(f"--corpus={text_file}", f"--out={out}", "--shard_tokens=999")
    assert (status, told) == (
        0,
        f"{out}: 20,000 tokens of uint8 in 1 shard(s), from 20,000 bytes of text in 1 file(s)\n",
    )
    assert train_on(text_file, tmp_path / "text") == train_on(out, tmp_path / "ids") == 0
    assert losses(tmp_path / "ids") == losses(tmp_path / "text")
    texts = {(tmp_path / name / "samples" / "4.txt").read_text() for name in ("ids", "text")}
    assert len(texts) == 1
    capsys.readouterr()
    assert evaluate.main(["evaluate.py", f"--workdir={tmp_path / 'ids'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["corpus"] == str(out)
    expected = read_metrics(tmp_path / "ids" / "metrics.jsonl")[-1]["val/loss"]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)  # Over other devices.
    more = ["--config.train.steps=5", "--resume_allow=train.steps"]
    assert train_on(out, tmp_path / "ids", *more) == 0


def test_a_run_does_not_resume_with_a_corpus_that_was_prepared_again(script, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text(play.write()[:20_000], encoding="utf-8")
    for number in range(2):
        status = script(f"--corpus={text}", f"--out={tmp_path / 'out'}", "--tokenizer=byte")[0]
        assert status == 0
        more = ["--config.train.steps=5", "--resume_allow=train.steps"] * number
        assert train_on(tmp_path / "out", tmp_path / "run", *more) == 2 * number
        text.write_text(play.write()[1:20_001], encoding="utf-8")
        for path in (tmp_path / "out").iterdir():
            path.unlink()
    assert "is not the one with which the run in" in capsys.readouterr().err


def test_the_folder_of_a_run_or_of_gpt2_weights_is_refused(script, trained, text_file, tmp_path):
    for source in (trained, GPT2_TINY):
        folder = shutil.copytree(source, tmp_path / source.name)
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        status, _, err = script(f"--corpus={text_file}", f"--out={folder}", f"--tokenizer={folder}")
        assert status == 2
        assert "config.json exists but does not belong to this preparation" in err
        assert {path: path.read_bytes() for path in before} == before
        assert not (folder / "tokens.bin").exists()


def test_check_reads_everything_and_names_the_damage(script, text_file, tmp_path):
    out = tmp_path / "out"
    script(f"--corpus={text_file}", f"--out={out}", "--tokenizer=bpe", "--bpe_vocab_size=300")
    status, told, err = script("--check", f"--out={out}")
    assert (status, err) == (0, "")
    assert "all unchanged" in told
    ids = np.memmap(out / "tokens.bin", "<u2", "r+")
    ids[5] ^= 1
    ids.flush()
    status, told, err = script("--check", f"--out={out}")
    assert (status, told) == (2, "")
    assert "tokens.bin is damaged (shard 0 has changed)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus=a.txt"], "--out is missing"),
        (["--out=out"], "--corpus is missing"),
        (["--out=out", "--corpus=none.txt"], "/none.txt): give an existing file"),
        (["--out=out", "--corpus=builtin"], "train with --config.data.corpus=builtin, or give"),
        (["--out=out", "--corpus=tinyshakespeare"], "corpus=tinyshakespeare, or give"),
        (["--out=out", "--corpus=a.txt", "--tokenizer=words"], "is not char, byte or bpe"),
        (["--out=out", "--corpus=a.txt", "--bpe_vocab_size=9"], "data.bpe_vocab_size = 9"),
        (["--out=out", "--corpus=a.txt", "--shard_tokens=0"], "shard_tokens = 0"),
        (["--out=out", "--corpus=bad.txt"], "bad.txt is not UTF-8: byte 0xff at offset 1"),
        (["--out=a.txt", "--corpus=a.txt"], "a.txt is not a folder: use another folder"),
        (["--out=out", "--check"], "out is not a finished corpus"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(script, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    status, told, err = script(*flags)
    assert (status, told) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
