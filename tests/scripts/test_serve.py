"""scripts/serve.py: starts, says what it does, and ends."""

import json
import os
import re
import signal
import subprocess
import sys

import live
import pytest
import serve
from support import ROOT

GOOD = {"model": "small", "prompt": "The ", "seed": 0}


@pytest.fixture
def start(trained):
    """Starts the script. Gives the process and its address."""
    processes = []

    def call(*words):
        words = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--port=0", *words]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, 
            cwd=trained.parent.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield call
    for process in processes:
        process.kill()
        process.communicate()


def complete(url, **fields):
    return json.loads(live.send(url, "POST", "/v1/completions", GOOD | fields)[2])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_after_what_is_being_sent(start, trained, name):
    process, url = start(f"--workdir={trained}")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    complete(url, max_tokens=1)  # Compiles.
    chunks = iter(live.events(url, GOOD | {"max_tokens": 300, "stream": True}))
    texts = [next(chunks)["choices"][0]["text"]]
    process.send_signal(getattr(signal, name))
    texts += [chunk["choices"][0]["text"] for chunk in chunks]
    assert len("".join(texts)) == 300
    output, errors = process.communicate()
    assert (process.returncode, output) == (128 + getattr(signal, name), "")
    loading, described, *end = errors.removeprefix("loading JAX\n").splitlines()
    assert loading == f"loading {trained}" and "validation loss" in described
    assert end == ["", "interrupted"]


def test_a_text_without_end_is_cut_off_after_a_signal(start, trained):
    process, url = start(f"--workdir={trained}")
    body = GOOD | {"max_tokens": 16_384, "stream": True, "n": 16}
    next(live.events(url, body))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


@pytest.mark.parametrize("words", [[], ["--runs=runs"]])
def test_the_newest_run_or_all_runs_are_served(start, words):
    _, url = start(*words)
    models = json.loads(live.send(url, "GET", "/v1/models")[2])["data"]
    assert [model["id"] for model in models] == ["small"]
    assert complete(url, max_tokens=3)["usage"]["completion_tokens"] == 3


def run(*words):
    return serve.main(["scripts/serve.py", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slots=0"], "slots = 0 is out of range"),
        (["--queue=-1"], "queue = -1 is out of range"),
        (["--port=99999"], "port = 99999 is out of range: it must be 0 to 65535"),
        (["--host=203.0.113.1"], "203.0.113.1, port 8080, cannot be listened on"),
        (["--api_key_file=no/such/file"], "--api_key_file=no/such/file cannot be read"),
        (["--port=0", "--workdir=no/such"], "no/such/checkpoints holds no checkpoint"),
        (["--port=0", "--runs=."], "holds no runs"),
        (["--port=0", "--runs=.", "--workdir=small"], "exclude each other"),
        (["--port=0"], "there is no run with a checkpoint in"),
    ],
)
def test_a_bad_flag_gets_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_is_told(trained, capsys):
    with live.server(trained.parent) as url:
        port = url.rpartition(":")[2]
        assert run(f"--port={port}", f"--workdir={trained}") == 2
    assert f"port {port}, cannot be listened on" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "two words", "é"])
def test_a_key_is_one_word(content, tmp_path, capsys):
    path = tmp_path / "key"
    path.write_text(content, encoding="utf-8")
    assert run(f"--api_key_file={path}") == 2
    assert str(path) in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("gpt_jax.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("gpt_jax.serving", raising=False)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert run() == 2
    assert "pip install -e '.[serve]'" in capsys.readouterr().err
